"""Tests in this folder run inside of a guest: ``make guest`` (or ``vfio-user guest … -- python -m pytest``)."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from vfio_user.testing import in_guest

if TYPE_CHECKING:
    import pytest

#: Tests that have nothing to run on where the kernel lacks iommufd, or the kernel's samples of mediated devices.
NEED_IOMMUFD = ["test_iommufd.py", "test_reset_dev_ids.py"]
NEED_SAMPLES = ["test_display.py", "test_mdev.py", "test_migration.py"]

if not in_guest():
    collect_ignore_glob = ["test_*.py"]
else:
    collect_ignore = [] if os.path.exists("/dev/iommu") else [*NEED_IOMMUFD]
    if not os.path.exists("/sys/class/mdev_bus/mtty"):
        collect_ignore += NEED_SAMPLES

# VFIO_CHECK_EXTENSION, _IO(';', 101): asked plainly, so that a broken library fails tests instead of removing them.
_CHECK_EXTENSION = 0x3B65
_EXTENSIONS = {"type1": 1, "type1v2": 3}


def _container_modes(node: str, prefix: str = "") -> list[str]:
    try:
        container = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        found = [name for name, number in _EXTENSIONS.items() if fcntl.ioctl(container, _CHECK_EXTENSION, number)]
        return [prefix + name for name in found]
    finally:
        os.close(container)


def kernel_modes() -> list[str]:
    """Return the IOMMU modes that this guest's kernel has."""
    cdev = ["iommufd"] if os.path.isdir("/dev/vfio/devices") else []
    return _container_modes("/dev/vfio/vfio") + _container_modes("/dev/iommu", "compat-") + cdev


MODES = kernel_modes() if in_guest() else []
#: Those among them that differ in how they prove what may be reset, and in how they map device memory.
RESET_MODES = [mode for mode in MODES if mode in ("type1v2", "compat-type1v2", "iommufd")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `iommu_mode` once for each mode of the kernel, one that takes `reset_mode` for some.

    A test that names its modes with ``pytest.mark.parametrize`` has those.
    """
    named = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    for name, modes in (("iommu_mode", MODES), ("reset_mode", RESET_MODES)):
        if name in metafunc.fixturenames and name not in named:
            metafunc.parametrize(name, modes)
