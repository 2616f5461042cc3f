"""What a virtual display shows: its planes, as a region or as dma-bufs.

Source: ``VFIO_DEVICE_QUERY_GFX_PLANE`` in ``linux/vfio.h``; QEMU's ``hw/vfio/display.c`` reads the same.
"""

from __future__ import annotations

import enum
import errno
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi, lib
from vfio_user.device.edid import EdidRegion
from vfio_user.errors import MalformedReplyError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import Request, ioctl, requests
from vfio_user.kernel.uapi import GfxPlaneType, RegionType

if TYPE_CHECKING:
    from vfio_user._uapi import CData
    from vfio_user.device.base import VfioDevice

__all__ = ["Display", "DrmPlane", "Plane", "query_plane"]

_CTYPE = "struct vfio_device_gfx_plane_info"
# linux/dma-buf.h: _IOW('b', 0, struct dma_buf_sync), one u64 of flags.
_SYNC = Request("DMA_BUF_IOCTL_SYNC", 0x40086200)
_SYNC_READ, _SYNC_END = 1, 4


class DrmPlane(enum.IntEnum):
    """Planes of a display, as DRM counts them (``drm_plane_type``)."""

    OVERLAY = 0
    PRIMARY = 1
    CURSOR = 2


@dataclass(frozen=True, slots=True)
class Plane:
    """What a display shows on one plane."""

    kind: GfxPlaneType
    """How it is reached: `GfxPlaneType.REGION` or ``DMABUF``."""
    format: str
    """DRM's four letters for the format of a pixel: ``"XR24"`` for 32 bits, blue first."""
    modifier: int
    """DRM's number for how pixels are tiled; 0 is row by row."""
    width: int
    """Pixels across."""
    height: int
    """Pixels down."""
    stride: int
    """Bytes from one row to the next."""
    size: int
    """Bytes of memory that it has."""
    position: tuple[int, int]
    """Where a cursor is, across and down."""
    hot_spot: tuple[int, int]
    """Which of a cursor's pixels points."""
    handle: int
    """Index of the region, or id of the dma-buf."""


def query_plane(
    fd: int, name: str, kind: GfxPlaneType, plane: DrmPlane = DrmPlane.PRIMARY, *, probe: bool = False
) -> CData | None:
    """Ask ``VFIO_DEVICE_QUERY_GFX_PLANE``; `None` where the device has no planes of that kind."""
    flags = int(kind) | (lib.VFIO_GFX_PLANE_TYPE_PROBE if probe else 0)
    reply = ffi.new(f"{_CTYPE} *", {"argsz": ffi.sizeof(_CTYPE), "flags": flags, "drm_plane_type": int(plane)})
    try:
        ioctl(fd, requests.VFIO_DEVICE_QUERY_GFX_PLANE, reply, device=name)
    except VfioIoctlError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return None
        raise
    return reply


class Display:
    """The display of a mediated device: ``vdev.display``.

    Lifetime:
        Lives as long as its device.
    Locking:
        Each method is one system call or a few; any thread may call.
    """

    def __init__(self, vdev: VfioDevice) -> None:
        """Ask how the planes are reached.

        Raises:
            UnsupportedError: the device has no display.
        """
        self._vdev = vdev
        with vdev.user() as fd:
            kinds = (GfxPlaneType.DMABUF, GfxPlaneType.REGION)
            found = [kind for kind in kinds if query_plane(fd, vdev.name, kind, probe=True) is not None]
        if not found:
            raise UnsupportedError(f"{vdev.name} has no display: its driver knows nothing of planes")
        self.kind = found[0]
        """How planes are reached: `GfxPlaneType.REGION` or ``DMABUF``."""

    @property
    def monitor(self) -> EdidRegion:
        """The monitor that it sees.

        Raises:
            UnsupportedError: the driver of the device makes one up.
        """
        return EdidRegion(self._vdev.find_region(RegionType.GFX, lib.VFIO_REGION_SUBTYPE_GFX_EDID))

    def plane(self, which: DrmPlane = DrmPlane.PRIMARY) -> Plane | None:
        """Ask what a plane shows now: ``VFIO_DEVICE_QUERY_GFX_PLANE``; `None` when it shows nothing.

        A plane may change with every picture: ask for each.

        Raises:
            VfioIoctlError: the driver of the device could not tell, with an errno of its own choice.
            MalformedReplyError: the picture does not fit its memory.
        """
        with self._vdev.user() as fd:
            reply = query_plane(fd, self._vdev.name, self.kind, which)
        if reply is None or not reply.width or not reply.height:
            return None
        if reply.stride * reply.height > reply.size:
            raise MalformedReplyError(
                f"{self._vdev.name}: {reply.height} rows of {reply.stride} bytes do not fit a plane of {reply.size}"
            )
        return Plane(
            self.kind,
            struct.pack("<I", reply.drm_format).decode("latin-1"),
            int(reply.drm_format_mod),
            int(reply.width),
            int(reply.height),
            int(reply.stride),
            int(reply.size),
            (int(reply.x_pos), int(reply.y_pos)),
            (int(reply.x_hot), int(reply.y_hot)),
            int(reply.region_index if self.kind is GfxPlaneType.REGION else reply.dmabuf_id),
        )

    def dma_buf(self, plane: Plane) -> OwnedFd:
        """Give the dma-buf of a plane, to show it without a copy: ``VFIO_DEVICE_GET_GFX_DMABUF``.

        Returns:
            The file, which the caller closes; it holds the picture as long as it is open.

        Raises:
            UnsupportedError: the plane is in a region.
            VfioIoctlError: ENOENT when the plane shows something else by now; ask again.
        """
        if plane.kind is not GfxPlaneType.DMABUF:
            raise UnsupportedError(f"the planes of {self._vdev.name} are in a region, and no dma-bufs")
        argument = ffi.new("uint32_t *", plane.handle)
        with self._vdev.user() as fd:
            number = ioctl(fd, requests.VFIO_DEVICE_GET_GFX_DMABUF, argument, device=self._vdev.name)
        return OwnedFd(number, f"dma-buf {plane.handle} of {self._vdev.name}")

    @contextmanager
    def mapped(self, plane: Plane) -> Iterator[memoryview]:
        """Map the picture of a plane: ``with display.mapped(plane) as pixels:``.

        Yields:
            A read-only memoryview of ``stride * height`` bytes, format ``"B"``, which ends with the block.

        Raises:
            BoundsError: the device has no such region, or it is too small.
            MalformedReplyError: the dma-buf is too small.
            UnsupportedError: its driver lets no process map it (the sample mbochs does not): hand `dma_buf` to a GPU.
        """
        size = plane.stride * plane.height
        if plane.kind is GfxPlaneType.REGION:
            with self._vdev.region(plane.handle).view(0, size).toreadonly() as pixels:
                yield pixels
            return
        with (
            self.dma_buf(plane) as file,
            _map(file, size) as memory,
            memoryview(memory) as pixels,
        ):
            _sync(file, _SYNC_READ)
            try:
                yield pixels
            finally:
                _sync(file, _SYNC_READ | _SYNC_END)

    def __repr__(self) -> str:
        return f"<Display of {self._vdev.name} by {self.kind.name}>"


def _map(file: OwnedFd, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    except ValueError as error:
        raise MalformedReplyError(f"{file.name} is smaller than its picture of {size} bytes") from error
    except OSError as error:
        raise UnsupportedError(
            f"{file.name} can't be mapped by a process ({error.strerror}): its driver lets none"
        ) from error


def _sync(file: OwnedFd, flags: int) -> None:
    """Bracket the CPU's accesses, for devices whose caches would not know: ``DMA_BUF_IOCTL_SYNC``."""
    ioctl(file.fileno(), _SYNC, ffi.new("uint64_t *", flags), device=file.name)
