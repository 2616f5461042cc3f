"""What type1 containers do beyond mapping: they log dirty pages, and let memory change its address.

Source: ``drivers/vfio/vfio_iommu_type1.c`` of Linux. iommufd's stand-in for a container has neither.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi
from vfio_user.errors import UnsupportedError, VfioIoctlError
from vfio_user.iommu import explain
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.kernel.ioctl import Request, ioctl, requests
from vfio_user.kernel.uapi import DirtyPagesFlags, DmaMapFlags, DmaUnmapFlags, Extension

if TYPE_CHECKING:
    from vfio_user._uapi import CData
    from vfio_user.iommu.container import Container

__all__ = ["ContainerDirtyLog", "invalidate_vaddrs", "update_vaddr"]

_HEAD = "struct vfio_iommu_type1_dirty_bitmap"
_GET = "struct vfio_iommu_type1_dirty_bitmap_get"
_UNMAP = "struct vfio_iommu_type1_dma_unmap"
_MAP = "struct vfio_iommu_type1_dma_map"
_BITMAP = "struct vfio_bitmap"


class ContainerDirtyLog:
    """The log of a container: ``VFIO_IOMMU_DIRTY_PAGES``.

    Lifetime:
        From its making to `stop`, or to the container's end.
    Locking:
        Every method is one system call; the kernel serialises them.
    """

    def __init__(self, container: Container) -> None:
        """Start it; a bit stands for a page of the IOMMU's smallest size.

        Raises:
            UnsupportedError: the container can't: mode type1 (EACCES), or iommufd's stand-in for one (ENOTTY).
            VfioIoctlError: ENOMEM for the bitmaps.
        """
        self._container = container
        page_sizes = container.info().page_sizes
        self._page_size = page_sizes & -page_sizes
        try:
            self._ask(DirtyPagesFlags.START)
        except VfioIoctlError as error:
            if error.errno in (errno.EACCES, errno.ENOTTY):
                raise UnsupportedError(
                    f"mode {container.mode.value} keeps no log of dirty pages; type1v2 does"
                ) from error
            raise

    def read(self, iova: int, size: int) -> DirtyBitmap:
        """Read and clear the bits of whole mappings.

        Raises:
            VfioIoctlError: EINVAL when a mapping lies in the range in part, or for more than 2^31 bytes of bits.
        """
        bitmap = DirtyBitmap(iova, size, self._page_size)
        self._ask(DirtyPagesFlags.GET_BITMAP, {"iova": iova, "size": size, "bitmap": _described(bitmap)})
        return bitmap

    def unmap(self, iova: int, size: int) -> tuple[int, DirtyBitmap]:
        """Unmap whole mappings and read their bits in one: ``VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP``."""
        bitmap = DirtyBitmap(iova, size, self._page_size)
        buffer = bytearray(ffi.sizeof(_UNMAP) + ffi.sizeof(_BITMAP))
        argument = ffi.from_buffer(f"{_UNMAP} *", buffer)
        argument.argsz = len(buffer)
        argument.flags = DmaUnmapFlags.GET_DIRTY_BITMAP
        argument.iova, argument.size = iova, size
        ffi.memmove(argument.data, ffi.new(f"{_BITMAP} *", _described(bitmap)), ffi.sizeof(_BITMAP))
        _request(self._container, requests.VFIO_IOMMU_UNMAP_DMA, argument)
        return int(argument.size), bitmap

    def stop(self) -> None:
        """Log no more; stopping twice does nothing."""
        self._ask(DirtyPagesFlags.STOP)

    def _ask(self, operation: DirtyPagesFlags, fields: Mapping[str, object] | None = None) -> None:
        length = ffi.sizeof(_HEAD) + (ffi.sizeof(_GET) if fields else 0)
        buffer = bytearray(length)
        argument = ffi.from_buffer(f"{_HEAD} *", buffer)
        argument.argsz, argument.flags = length, operation
        if fields:
            ffi.memmove(argument.data, ffi.new(f"{_GET} *", fields), ffi.sizeof(_GET))
        _request(self._container, requests.VFIO_IOMMU_DIRTY_PAGES, argument)


def invalidate_vaddrs(container: Container) -> int:
    """Make the kernel forget where in this process mapped memory is: ``VFIO_DMA_UNMAP_FLAG_VADDR``.

    Devices reach the memory as before. Nothing may be mapped for mediated devices meanwhile.

    Returns:
        The number of bytes that this concerns.

    Raises:
        UnsupportedError: the container can't (``VFIO_UPDATE_VADDR``).
        VfioIoctlError: EBUSY when a device without an IOMMU of its own (a mediated one) is in the container; EINVAL
            when something is invalid already, and nothing has changed.
    """
    _require_vaddr(container)
    flags = DmaUnmapFlags.VADDR | DmaUnmapFlags.ALL
    argument = ffi.new(f"{_UNMAP} *", {"argsz": ffi.sizeof(_UNMAP), "flags": flags})
    hints = {
        errno.EBUSY: "A mediated device is in the container: it reaches memory by these addresses",
        errno.EINVAL: "Some are invalid already: give each mapping its new address first",
    }
    _request(container, requests.VFIO_IOMMU_UNMAP_DMA, argument, hints)
    return int(argument.size)


def update_vaddr(container: Container, iova: int, size: int, vaddr: int) -> None:
    """Say where in this process the memory of a mapping is now: ``VFIO_DMA_MAP_FLAG_VADDR``.

    It must be the same memory, as a shared memory file is, and it is charged to this process from now on.

    Raises:
        UnsupportedError: the container can't.
        VfioIoctlError: ENOENT when nothing is mapped there; EINVAL when it is another mapping than that, or its
            address was not invalidated before; ENOMEM beyond this process's limit of locked memory.
    """
    _require_vaddr(container)
    fields = {"flags": DmaMapFlags.VADDR, "iova": iova, "size": size, "vaddr": vaddr}
    argument = ffi.new(f"{_MAP} *", {"argsz": ffi.sizeof(_MAP), **fields})
    hints = {
        errno.ENOENT: f"Nothing is mapped at IOVA {iova:#x}",
        errno.EINVAL: "There is no mapping of exactly that place and size, or its address is still valid",
    }
    _request(container, requests.VFIO_IOMMU_MAP_DMA, argument, hints)


def _require_vaddr(container: Container) -> None:
    if not container.has_extension(Extension.UPDATE_VADDR):
        raise UnsupportedError(explain.no_new_addresses(container.mode.value))


def _described(bitmap: DirtyBitmap) -> dict[str, object]:
    data = ffi.cast("uint64_t *", bitmap.address)
    return {"pgsize": bitmap.page_size, "size": bitmap.num_bytes, "data": data}


def _request(container: Container, request: Request, argument: CData, hints: Mapping[int, str] | None = None) -> None:
    try:
        ioctl(container.fd.fileno(), request, argument, device=container.fd.name)
    except VfioIoctlError as error:
        code = error.errno or 0
        raise VfioIoctlError(code, error.request, error.device, (hints or {}).get(code, "")) from error
