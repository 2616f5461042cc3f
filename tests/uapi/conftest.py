"""The kernel headers to compare with: the newest that the distribution's mirror has. Without them the tests fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.uapi import facts
from vfio_user.testing import debian

if TYPE_CHECKING:
    from pathlib import Path

#: Suites that new kernels come to; the newest package of all of them is taken.
SUITES = ("trixie-backports", "sid", "experimental")


@pytest.fixture(scope="session")
def include() -> Path:
    package = debian.newest("linux-libc-dev", SUITES)
    return debian.unpacked(package) / "usr" / "include"


@pytest.fixture(scope="session")
def kernel(include: Path, tmp_path_factory: pytest.TempPathFactory) -> facts.Facts:
    return facts.of_headers(include, tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="session")
def ours(kernel: facts.Facts) -> facts.Facts:
    found = facts.of_extension()
    facts.add_enums(found, kernel.enums)
    return found
