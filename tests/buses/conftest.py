"""Tests in this folder run inside of guests of other architectures; each file says on which device."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING, Any

import pytest

from tests.guest.conftest import kernel_modes
from vfio_user import testing

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfio_user.testing import GuestDevice

if not testing.in_guest():
    collect_ignore_glob = ["test_*.py"]


def bus_modes() -> list[str]:
    """Return the IOMMU modes that devices of this guest can be opened in."""
    if glob.glob("/dev/vfio/noiommu-*"):
        return ["noiommu", "noiommu-iommufd"]
    return kernel_modes()


MODES = bus_modes() if testing.in_guest() else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `ways` once for each mode of the guest: keywords of the functions that open."""
    if "way" in metafunc.fixturenames:
        metafunc.parametrize("way", [{"mode": mode, "allow_noiommu": "noiommu" in mode} for mode in MODES], ids=MODES)


@pytest.fixture
def place(vfio_device: Callable[[str], GuestDevice]) -> Callable[[str], str]:
    """Give the name that a device of the guest has on its bus."""
    return lambda kind: vfio_device(kind).address


Way = dict[str, Any]
