"""A tree that looks like the part of sysfs that the package reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.kernel import sysfs

if TYPE_CHECKING:
    import pytest


class FakeSysfs:
    """PCI functions and IOMMU groups, in a folder that takes the place of ``/sys``."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        monkeypatch.setattr(sysfs, "SYSFS", root)

    def add(
        self,
        address: str,
        *,
        ids: tuple[int, int, int] = (0x1234, 0x11E8, 0x00FF00),
        driver: str | None = None,
        group: int | None = None,
        vfio_device: str | None = None,
    ) -> Path:
        """Add one function and give its folder."""
        path = self.root / "bus/pci/devices" / address
        path.mkdir(parents=True)
        for name, value, digits in zip(("vendor", "device", "class"), ids, (4, 4, 6), strict=True):
            (path / name).write_text(f"0x{value:0{digits}x}\n")
        if group is not None:
            members = self.root / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(path)
            (path / "iommu_group").symlink_to(members.parent)
        if vfio_device is not None:
            (path / "vfio-dev" / vfio_device).mkdir(parents=True)
        if driver is not None:
            self.bind(address, driver)
        return path

    def bind(self, address: str, driver: str) -> None:
        """Bind a function to a driver, in place of the one that it has."""
        folder = self.root / "bus/pci/drivers" / driver
        folder.mkdir(parents=True, exist_ok=True)
        link = self.root / "bus/pci/devices" / address / "driver"
        link.unlink(missing_ok=True)
        link.symlink_to(folder)

    def remove(self, address: str) -> None:
        """Take a function away, as when it is unplugged."""
        shutil.rmtree(self.root / "bus/pci/devices" / address)
