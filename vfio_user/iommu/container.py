"""VFIO containers: the type1 back ends, and noiommu."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import suppress

from vfio_user._uapi import ffi, lib
from vfio_user.addresses import IovaRange
from vfio_user.errors import IovaError, MalformedReplyError, UnsupportedError, VfioError, VfioIoctlError
from vfio_user.iommu import explain
from vfio_user.iommu.info import IommuInfo
from vfio_user.iommu.modes import IommuMode
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import capabilities, ioctl, query, requests
from vfio_user.kernel.mman import PAGE_SIZE

__all__ = ["Container"]

_NO_COUNT = (1 << 32) - 1
"""What iommufd's stand-in for a container says of how many mappings are left: it does not count them."""


class Container:
    """A VFIO container: one set of page tables, shared by the groups in it.

    Lifetime:
        Closed by `close()`, after its groups. The kernel forgets all mappings when the last group leaves.
    Locking:
        Every method is one system call; the kernel serialises them.
    """

    def __init__(self, mode: IommuMode, fd: OwnedFd | None = None) -> None:
        """Open the container's node, or take over one that is open, and check its version.

        Raises:
            VfioOSError: the node is missing or not ours; the message says what to do.
            UnsupportedError: the kernel lacks this mode.
        """
        self.mode = mode
        compat = mode in (IommuMode.COMPAT_TYPE1, IommuMode.COMPAT_TYPE1V2)
        self.fd = fd or explain.open_node(mode.node, explain.iommufd_open if compat else explain.container_open)
        try:
            self._require()
        except BaseException:
            self.fd.close()
            raise

    def _require(self) -> None:
        version = ioctl(self.fd.fileno(), requests.VFIO_GET_API_VERSION, device=self.fd.name)
        if version != lib.VFIO_API_VERSION:
            raise UnsupportedError(f"{self.fd.name} speaks VFIO API version {version}, not {lib.VFIO_API_VERSION}")
        if not self.has_extension(self.iommu_type):
            raise UnsupportedError(f"the kernel has no IOMMU type {self.mode.value}: modprobe vfio_iommu_type1")

    @property
    def iommu_type(self) -> int:
        """Argument of ``VFIO_SET_IOMMU`` for this container's mode."""
        kind = self.mode.iommu_type
        assert kind is not None, "a container is opened for a container's mode only"
        return kind

    def has_extension(self, extension: int) -> bool:
        """Ask ``VFIO_CHECK_EXTENSION``."""
        return ioctl(self.fd.fileno(), requests.VFIO_CHECK_EXTENSION, extension, device=self.fd.name) > 0

    def set_iommu(self) -> None:
        """Choose the IOMMU type; needs a group in the container: ``VFIO_SET_IOMMU``.

        Raises:
            VfioIoctlError: EPERM when interrupts are not remapped; ENODEV when no driver serves the type.
        """
        try:
            ioctl(self.fd.fileno(), requests.VFIO_SET_IOMMU, self.iommu_type, device=self.fd.name)
        except VfioIoctlError as error:
            code = error.errno or 0
            raise VfioIoctlError(code, error.request, self.fd.name, explain.set_iommu(code)) from error

    def info(self) -> IommuInfo:
        """Ask ``VFIO_IOMMU_GET_INFO`` and read its capability chain.

        Raises:
            MalformedReplyError: the reply does not follow its own layout.
        """
        reply = query(
            self.fd.fileno(),
            requests.VFIO_IOMMU_GET_INFO,
            "struct vfio_iommu_type1_info",
            device=self.fd.name,
        )
        flags = reply.data.flags
        page_sizes = reply.data.iova_pgsizes if flags & lib.VFIO_IOMMU_INFO_PGSIZES else PAGE_SIZE
        if not page_sizes:
            raise MalformedReplyError(f"{self.fd.name}: the IOMMU has no page size at all")
        # Where the kernel names no limits: 39 bits are what every IOMMU in use translates.
        ranges: tuple[IovaRange, ...] = (IovaRange(0, (1 << 39) - 1),)
        dma_avail = None
        if flags & lib.VFIO_IOMMU_INFO_CAPS:
            for identity, _, offset in capabilities(reply.raw, reply.data.cap_offset):
                if identity == lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                    ranges = tuple(_read_ranges(reply.raw, offset))
                elif identity == lib.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
                    found = _read_u32(reply.raw, offset + 8)
                    dma_avail = found if found != _NO_COUNT else None
        return IommuInfo(page_sizes, ranges, dma_avail)

    def map(self, iova: int, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Map process memory for the devices: ``VFIO_IOMMU_MAP_DMA``.

        Raises:
            IovaError: something is mapped there already (EEXIST). That is never success: the device would reach the
                old pages.
            VfioIoctlError: ENOMEM (memlock), ENOSPC (no mappings left), EFAULT, EINVAL; the message says which limit.
        """
        flags = (lib.VFIO_DMA_MAP_FLAG_READ if read else 0) | (lib.VFIO_DMA_MAP_FLAG_WRITE if write else 0)
        argument = ffi.new(
            "struct vfio_iommu_type1_dma_map *",
            {
                "argsz": ffi.sizeof("struct vfio_iommu_type1_dma_map"),
                "flags": flags,
                "vaddr": vaddr,
                "iova": iova,
                "size": size,
            },
        )
        try:
            ioctl(self.fd.fileno(), requests.VFIO_IOMMU_MAP_DMA, argument, device=self.fd.name)
        except VfioIoctlError as error:
            code = error.errno or 0
            if code == errno.EEXIST:
                raise IovaError(f"IOVA {iova:#x}, {size:#x} bytes: mapped already, at least in part") from error
            hint = explain.map_failed(code, size, self._dma_avail() if code == errno.ENOSPC else None)
            raise VfioIoctlError(code, error.request, self.fd.name, hint) from error

    def unmap(self, iova: int, size: int) -> int:
        """Unmap a range and give the number of bytes that the kernel unmapped: ``VFIO_IOMMU_UNMAP_DMA``."""
        return self._unmap(iova, size, 0)

    def unmap_all(self) -> int:
        """Unmap everything and give the number of bytes."""
        if self.has_extension(lib.VFIO_UNMAP_ALL):
            return self._unmap(0, 0, lib.VFIO_DMA_UNMAP_FLAG_ALL)
        # One call takes no more than a signed 64-bit size, so two halves cover the whole space.
        return self._unmap(0, 1 << 63, 0) + self._unmap(1 << 63, (1 << 63) - 4096, 0)

    def close(self) -> None:
        """Close the container; closing twice does nothing."""
        self.fd.close()

    def _unmap(self, iova: int, size: int, flags: int) -> int:
        argument = ffi.new(
            "struct vfio_iommu_type1_dma_unmap *",
            {
                "argsz": ffi.sizeof("struct vfio_iommu_type1_dma_unmap"),
                "flags": flags,
                "iova": iova,
                "size": size,
            },
        )
        ioctl(self.fd.fileno(), requests.VFIO_IOMMU_UNMAP_DMA, argument, device=self.fd.name)
        return int(argument.size)

    def _dma_avail(self) -> int | None:
        # For a message: what fails here must not hide the failure that it is about.
        with suppress(VfioError):
            return self.info().dma_avail
        return None

    def __repr__(self) -> str:
        return f"<Container {self.mode.value}{' closed' if self.fd.closed else ''}>"


def _read_u32(raw: bytes, offset: int) -> int:
    if offset + 4 > len(raw):
        raise MalformedReplyError(f"capability field at {offset} lies outside of the reply of {len(raw)} bytes")
    return int(struct.unpack_from("=I", raw, offset)[0])


def _read_ranges(raw: bytes, offset: int) -> Iterator[IovaRange]:
    count = _read_u32(raw, offset + 8)
    start = offset + 16
    if start + count * 16 > len(raw):
        raise MalformedReplyError(f"{count} IOVA ranges at {start} do not fit the reply of {len(raw)} bytes")
    for first, last in struct.iter_unpack("=QQ", raw[start : start + count * 16]):
        if first > last:
            raise MalformedReplyError(f"IOVA range {first:#x}..{last:#x} ends before it begins")
        yield IovaRange(first, last)
