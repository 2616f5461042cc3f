"""Tests in this folder run inside of a guest: ``make guest`` (or ``vfio-user guest … -- python -m pytest``)."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from vfio_user.testing import in_guest

if TYPE_CHECKING:
    import pytest

if not in_guest():
    collect_ignore_glob = ["test_*.py"]

# VFIO_CHECK_EXTENSION, _IO(';', 101): asked plainly, so that a broken library fails tests instead of removing them.
_CHECK_EXTENSION = 0x3B65
_EXTENSIONS = {"type1": 1, "type1v2": 3}


def kernel_modes() -> list[str]:
    """Return the IOMMU modes that this guest's kernel has."""
    try:
        container = os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [name for name, number in _EXTENSIONS.items() if fcntl.ioctl(container, _CHECK_EXTENSION, number)]
    finally:
        os.close(container)


MODES = kernel_modes() if in_guest() else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `iommu_mode` once for each mode of the kernel."""
    if "iommu_mode" in metafunc.fixturenames:
        metafunc.parametrize("iommu_mode", MODES)
