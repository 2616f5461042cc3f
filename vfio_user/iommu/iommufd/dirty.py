"""Dirty tracking by page tables of iommufd, for all devices of an address space."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vfio_user.errors import VfioIoctlError
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.iommu.iommufd.hwpt import Hwpt
from vfio_user.kernel.uapi import HwptAllocFlags

if TYPE_CHECKING:
    from vfio_user.iommu.iommufd.device import BoundDevice
    from vfio_user.iommu.iommufd.ioas import Ioas

__all__ = ["HwptDirtyLog"]


class HwptDirtyLog:
    """Page tables that track, which the devices of an address space are moved to while it lasts.

    They show the same mappings as those that the kernel made by itself, and a device goes over from one to the other
    at once, so nothing that it does is lost. Devices that can't share page tables get some of their own.

    No emulated IOMMU tracks what devices write to, and without it starting fails with `UnsupportedError` (EOPNOTSUPP of
    ``IOMMU_HWPT_ALLOC``): it is exercised on the kernel's mock IOMMU only.

    Lifetime:
        `stop` moves the devices back.
    Locking:
        The address space's attach lock covers `take` and `stop`.
    """

    def __init__(self, ioas: Ioas, devices: Iterable[BoundDevice], page_size: int) -> None:
        """Move the devices over, all or none.

        Raises:
            UnsupportedError: the IOMMU of one of them can't track.
        """
        self._ioas = ioas
        self._page_size = page_size
        self._tables: list[Hwpt] = []
        self._devices: list[BoundDevice] = []
        self._stopped = False
        try:
            for device in devices:
                self.take(device)
        except BaseException:
            self.stop()
            raise

    def take(self, device: BoundDevice) -> None:
        """Move one device over, unless `stop` was called.

        Raises:
            UnsupportedError: its IOMMU can't track.
        """
        if self._stopped:
            return
        for table in self._tables:
            try:
                device.attach_pt(table)
            except VfioIoctlError as error:
                if error.errno != errno.EINVAL:  # of another IOMMU
                    raise
            else:
                self._devices.append(device)
                return
        table = self._ioas.alloc_hwpt(device.device_id, flags=HwptAllocFlags.DIRTY_TRACKING)
        self._tables.append(table)
        table.set_dirty_tracking(True)
        device.attach_pt(table)
        self._devices.append(device)

    def read(self, iova: int, size: int) -> DirtyBitmap:
        """Read and clear what the page tables have noted."""
        return self._look(iova, size, clear=True)

    def unmap(self, iova: int, size: int) -> tuple[int, DirtyBitmap]:
        """Read what they have noted, then unmap."""
        bitmap = self._look(iova, size, clear=False)  # what clearing would cost is lost anyway
        return self._ioas.unmap(iova, size), bitmap

    def stop(self) -> None:
        """Move the devices back, and drop the page tables; stopping twice does nothing."""
        self._stopped = True
        devices, self._devices = self._devices, []
        for device in devices:
            if not device.closed:
                device.attach_pt(self._ioas)
        while self._tables:
            self._tables[-1].destroy()
            self._tables.pop()

    def _look(self, iova: int, size: int, *, clear: bool) -> DirtyBitmap:
        found = DirtyBitmap(iova, size, self._page_size)
        for table in self._tables:
            found.merge(table.dirty_bitmap(iova, size, page_size=self._page_size, clear=clear))
        return found
