"""Parts of a device's memory as a file that others can map: dma-buf."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfio_user.errors import AlignmentError, ArgumentError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import PAGE_SIZE
from vfio_user.kernel.uapi import DeviceFeature

if TYPE_CHECKING:
    from vfio_user.device.region import Region

__all__ = ["HeldFile", "export"]


def export(region: Region, parts: Sequence[tuple[int, int]], *, write: bool = True) -> OwnedFd:
    """Make a dma-buf of parts of a region; see `Region.export_dma_buf`."""
    if not parts:
        raise ArgumentError("no parts of the region were given")
    for offset, size in parts:
        region._check(offset, size)
        if offset % PAGE_SIZE or size % PAGE_SIZE:
            raise AlignmentError(f"offset {offset:#x}, size {size:#x}: a dma-buf is made of pages of {PAGE_SIZE:#x}")
    access = os.O_RDWR if write else os.O_RDONLY
    vdev = region.vdev
    try:
        reply = vdev.features.get(
            DeviceFeature.DMA_BUF,
            "struct vfio_device_feature_dma_buf",
            region_index=region.index,
            open_flags=access | os.O_CLOEXEC,
            nr_ranges=len(parts),
            dma_ranges=[{"offset": offset, "length": size} for offset, size in parts],
        )
    except VfioIoctlError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            raise UnsupportedError(f"{region.name} is no memory that other devices could reach") from error
        raise
    return OwnedFd(reply.value, f"dma-buf of {region.name}")


class HeldFile:
    """Hold a file for a mapping: it is closed when the mapping lets go of it.

    Lifetime:
        Goes with the last reference.
    Locking:
        None.
    """

    def __init__(self, file: OwnedFd) -> None:
        self._file = file

    def fileno(self) -> int:
        """Give the file's descriptor."""
        return self._file.fileno()

    def __del__(self) -> None:
        self._file.close()
