"""Dirty tracking: which pages devices write to while it runs, whatever the back end."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from vfio_user.errors import ArgumentError, ClosedError
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.iommu.buffer import DmaBuffer

if TYPE_CHECKING:
    from vfio_user.addresses import Iova
    from vfio_user.iommu.mapper import Mapper, Unmappable
    from vfio_user.iommu.mapping import DmaMapping

__all__ = ["DirtyLog", "DirtyTracking"]


class DirtyLog(Protocol):
    """What a back end answers with while it tracks."""

    def read(self, iova: Iova, size: int) -> DirtyBitmap:
        """Give the pages of whole mappings that were written to since the last look, and forget them."""

    def unmap(self, iova: Iova, size: int) -> tuple[int, DirtyBitmap]:
        """Unmap a range; give the number of bytes, and the pages as `read` does."""

    def stop(self) -> None:
        """Track no more."""


class DirtyTracking:
    """Which pages devices write to, while it runs; `AddressSpace.track_dirty` makes one.

    ::

        with space.track_dirty() as dirty:
            ...                                   # copy everything once, while devices work
            for iova in dirty.read(buffer):
                ...                               # copy again what they wrote to
            last = dirty.unmap(buffer)

    How exact it is depends on the back end. A type1 container has no hardware to ask: it reports *every* page that it
    has pinned, which for devices behind an IOMMU is every page that is mapped. Page tables of iommufd report what the
    IOMMU noted, and the first look at a page may be late.

    Lifetime:
        `stop()`, or the ``with`` block, ends it; so does closing the address space.
    Locking:
        All methods may be called from any thread. A look counts against the one before, whoever made it.
    """

    def __init__(self, mapper: Mapper, log: DirtyLog, attach_lock: threading.Lock) -> None:
        self._mapper = mapper
        self._log: DirtyLog | None = log
        self._attach_lock = attach_lock

    @property
    def running(self) -> bool:
        """Tell whether it still tracks."""
        return self._log is not None

    def read(self, item: Unmappable) -> DirtyBitmap:
        """Give which pages of a mapping or buffer were written to since the last look, and forget them.

        ``VFIO_IOMMU_DIRTY_PAGES`` or ``IOMMU_HWPT_GET_DIRTY_BITMAP``. A bit stands for a page of the IOMMU.

        Raises:
            ClosedError: tracking was stopped, or the mapping has ended.
            ArgumentError: it is of another address space.
            VfioIoctlError: the kernel refused.
        """
        mapping = self._known(item)
        return self._running().read(mapping.iova, mapping.size)

    def unmap(self, item: Unmappable) -> DirtyBitmap:
        """Take a mapping or buffer from the devices, and give which pages were written to since the last look.

        A container does both at once (``VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP``). iommufd reads first and then unmaps:
        a device that still writes in between is not noticed, so stop it before.

        Raises:
            As `read` does; also `ClosedError` when another thread unmapped it meanwhile, and `VfioError` when the
                kernel did not confirm the unmap: the memory is kept then.
        """
        mapping, log = self._known(item), self._running()
        found: list[DirtyBitmap] = []

        def by(iova: Iova, size: int) -> int:
            unmapped, bitmap = log.unmap(iova, size)
            found.append(bitmap)
            return unmapped

        self._mapper.unmap(mapping, by)
        if not found:
            raise ClosedError(f"{mapping!r} was unmapped meanwhile")
        if isinstance(item, DmaBuffer):
            item.close()  # its memory file
        return found[0]

    def stop(self) -> None:
        """Track no more; stopping twice does nothing.

        Raises:
            VfioIoctlError: the kernel refused.
        """
        with self._attach_lock:
            self._stop()

    def _stop(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.stop()

    def _running(self) -> DirtyLog:
        if self._log is None:
            raise ClosedError("dirty tracking was stopped")
        return self._log

    def _known(self, item: Unmappable) -> DmaMapping:
        mapping = item.mapping if isinstance(item, DmaBuffer) else item
        if mapping._mapper is not self._mapper:
            raise ArgumentError(f"{mapping!r} is of another address space than the one that is tracked")
        if not mapping.mapped:
            raise ClosedError(f"{mapping!r} is not mapped")
        return mapping

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<DirtyTracking{'' if self.running else ' stopped'}>"
