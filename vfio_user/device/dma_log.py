"""The device's own log of what it writes to, for devices that keep one: ``DMA_LOGGING_*``.

Exercised on the kernel's sample mtty only, which takes the requests and, doing no DMA, never reports a page. Source:
``vfio_ioctl_device_feature_logging_start()`` and its siblings in ``drivers/vfio/vfio_main.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user._uapi import ffi
from vfio_user.addresses import IovaRange
from vfio_user.errors import ArgumentError, BusyError, VfioIoctlError
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.kernel.uapi import DeviceFeature

if TYPE_CHECKING:
    from vfio_user.device.base import VfioDevice

__all__ = ["DmaLog"]


class DmaLog:
    """What a device has written to, page by page.

    ::

        with DmaLog(vdev) as log:
            log.start([IovaRange(0, 0xFFFFFFFF)])
            ...
            for iova in log.report(buffer.iova, buffer.size):
                ...

    Lifetime:
        `stop`, or the ``with`` block, ends the log; so does closing the device.
    Locking:
        Each method is one system call; the kernel serialises them.
    """

    def __init__(self, vdev: VfioDevice) -> None:
        """Name the device; nothing is logged yet.

        Raises:
            UnsupportedError: it keeps no log.
        """
        vdev.features.require(DeviceFeature.DMA_LOGGING_START)
        self._vdev = vdev
        self._started = False

    @property
    def started(self) -> bool:
        """Tell whether it logs."""
        return self._started

    def start(self, ranges: Iterable[IovaRange], *, page_size: int = 4096) -> int:
        """Begin to log writes to some ranges of IOVAs: ``DMA_LOGGING_START``.

        Args:
            ranges: what to watch; they must not overlap.
            page_size: bytes that a bit of the report stands for, a wish: the device may take another.

        Returns:
            The page size that the device took.

        Raises:
            ArgumentError: no ranges were given.
            BusyError: it logs already.
            VfioIoctlError: EINVAL when ranges overlap; EOPNOTSUPP, ENOMEM beyond what the device can watch.
        """
        watched = list(ranges)
        if not watched:
            raise ArgumentError("no ranges were given; nothing would be logged")
        if self._started:
            raise BusyError(f"{self._vdev.name} logs already; stop() first")
        array = ffi.new("struct vfio_device_feature_dma_logging_range[]", [(each.first, each.size) for each in watched])
        reply = self._vdev.features.set(
            DeviceFeature.DMA_LOGGING_START,
            "struct vfio_device_feature_dma_logging_control",
            page_size=page_size,
            num_ranges=len(watched),
            ranges=int(ffi.cast("uintptr_t", array)),
        )
        self._started = True
        return int(reply.data.page_size)

    def report(self, iova: int, size: int, *, page_size: int = 4096) -> DirtyBitmap:
        """Read which pages of a range were written to since the last report, and forget it: ``DMA_LOGGING_REPORT``.

        Args:
            iova: first of the range, within what is watched.
            size: bytes of the range.
            page_size: bytes that a bit stands for, a power of two of at least 4096.

        Raises:
            ArgumentError: it does not log.
            VfioIoctlError: the kernel refused.
        """
        if not self._started:
            raise ArgumentError(f"{self._vdev.name} does not log; start() first")
        bitmap = DirtyBitmap(iova, size, page_size)
        self._vdev.features.get(
            DeviceFeature.DMA_LOGGING_REPORT,
            "struct vfio_device_feature_dma_logging_report",
            iova=iova,
            length=size,
            page_size=page_size,
            bitmap=bitmap.address,
        )
        return bitmap

    def stop(self) -> None:
        """Stop logging; stopping twice does nothing: ``DMA_LOGGING_STOP``."""
        if not self._started:
            return
        self._started = False
        try:
            self._vdev.features.set(DeviceFeature.DMA_LOGGING_STOP)
        except VfioIoctlError as error:
            if error.errno != errno.EINVAL:  # a reset has stopped it
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<DmaLog of {self._vdev.name}{'' if self._started else ' stopped'}>"
