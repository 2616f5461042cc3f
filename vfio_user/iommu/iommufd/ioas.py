"""I/O address spaces of an iommufd."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from vfio_user._uapi import ffi, lib
from vfio_user.addresses import Iova, IovaRange
from vfio_user.errors import ArgumentError, IovaError, MalformedReplyError, VfioError, VfioIoctlError
from vfio_user.iommu import explain
from vfio_user.iommu.iommufd.command import address, command, send
from vfio_user.iommu.iommufd.hwpt import Hwpt, alloc_hwpt
from vfio_user.iommu.iommufd.object import IommufdObject
from vfio_user.kernel.ioctl import MAX_REPLY, Request, requests
from vfio_user.kernel.uapi import HwptAllocFlags

__all__ = ["Ioas", "IoasRanges"]

_EVERYTHING = (1 << 64) - 1
_ROUNDS = 8
_NO_FLAGS = HwptAllocFlags(0)
_UNMAP_HINTS = {errno.ENOENT: "Nothing is mapped there, or a mapping reaches beyond: mappings are unmapped whole"}


@dataclass(frozen=True, slots=True)
class IoasRanges:
    """Reply of ``IOMMU_IOAS_IOVA_RANGES``."""

    ranges: tuple[IovaRange, ...]
    """IOVAs that can be mapped as of now, ordered; each device that is attached can take some away."""
    alignment: int
    """What addresses and sizes must be multiples of; 1 while no device is attached."""


class Ioas(IommufdObject):
    """An I/O address space: what a device that is attached to it reaches of memory, and where.

    The layer of typed requests: memory is named by its address, and nothing keeps it alive. `AddressSpace` with the
    mode ``"iommufd"`` is built on it, and does.

    Lifetime:
        See `IommufdObject`; destroying it unmaps everything.
    Locking:
        Every method is one system call; the kernel serialises them.
    """

    # -- mapping

    def map(self, vaddr: int, size: int, iova: int | None = None, *, read: bool = True, write: bool = True) -> Iova:
        """Map memory of this process: ``IOMMU_IOAS_MAP``.

        Args:
            vaddr: its address; with ``size`` and ``iova`` a multiple of `IoasRanges.alignment`.
            size: bytes.
            iova: where; by default the kernel chooses.
            read: devices may read it.
            write: devices may write it.

        Raises:
            IovaError: something is mapped there already (EEXIST), or no IOVA is free (ENOSPC).
            VfioIoctlError: EFAULT for memory that can't be pinned, device memory among it; ENOMEM beyond the limit;
                EINVAL outside of the usable ranges, or not aligned.
        """
        return self._map(
            requests.IOMMU_IOAS_MAP,
            "struct iommu_ioas_map",
            iova,
            size,
            read,
            write,
            ioas_id=self._live(),
            user_va=vaddr,
        )

    def map_file(
        self, fd: int, offset: int, size: int, iova: int | None = None, *, read: bool = True, write: bool = True
    ) -> Iova:
        """Map a part of a memory file, or a dma-buf of a device's region: ``IOMMU_IOAS_MAP_FILE``.

        The kernel keeps the file; its descriptor may be closed. What was mapped of a dma-buf is unmapped for good when
        its owner revokes it, as a reset of the device does, while the IOVA stays taken: unmap it, and map again.

        Raises:
            UnsupportedError: the kernel can't (before 6.13), or not a file of this kind.
            IovaError: as `map`.
            VfioIoctlError: as `map`; EBADF, EINVAL when the file is no memory file.
        """
        return self._map(
            requests.IOMMU_IOAS_MAP_FILE,
            "struct iommu_ioas_map_file",
            iova,
            size,
            read,
            write,
            ioas_id=self._live(),
            fd=fd,
            start=offset,
        )

    def copy(
        self,
        source: Ioas,
        source_iova: int,
        size: int,
        iova: int | None = None,
        *,
        read: bool = True,
        write: bool = True,
    ) -> Iova:
        """Map what another address space has mapped, without pinning it a second time: ``IOMMU_IOAS_COPY``.

        Args:
            source: that address space; may be this one.
            source_iova: where it is mapped there.
            size: bytes; within one mapping.
            iova: where; by default the kernel chooses.
            read: devices may read it.
            write: devices may write it; the mapping must allow it.

        Raises:
            IovaError: as `map`; also when nothing is mapped there (ENOENT).
            VfioIoctlError: EPERM for writing what is mapped for reading.
        """
        flags = _flags(iova, read, write)
        try:
            reply = command(
                self.iommufd.fd,
                requests.IOMMU_IOAS_COPY,
                "struct iommu_ioas_copy",
                flags=flags,
                dst_ioas_id=self._live(),
                src_ioas_id=source._live(),
                length=size,
                dst_iova=iova or 0,
                src_iova=source_iova,
            )
        except VfioIoctlError as error:
            if error.errno == errno.ENOENT:
                raise IovaError(f"nothing is mapped at {source_iova:#x} of {source!r}, or less than all") from error
            raise _refused(error, iova, size) from error
        return Iova(reply.dst_iova)

    def unmap(self, iova: int, size: int) -> int:
        """Unmap every mapping within a range, whole ones only, and give the number of bytes: ``IOMMU_IOAS_UNMAP``.

        Raises:
            VfioIoctlError: ENOENT when nothing is mapped there, or a mapping lies there in part.
        """
        fields = {"ioas_id": self._live(), "iova": iova, "length": size}
        fd = self.iommufd.fd
        reply = command(fd, requests.IOMMU_IOAS_UNMAP, "struct iommu_ioas_unmap", hints=_UNMAP_HINTS, **fields)
        return int(reply.length)

    def unmap_all(self) -> int:
        """Unmap everything and give the number of bytes; nothing at all is no error."""
        return self.unmap(0, _EVERYTHING)

    def physical(self, iova: int, size: int) -> tuple[int, int]:
        """Look up where memory is that is mapped for a noiommu device: ``IOMMU_IOAS_NOIOMMU_GET_PA``.

        Returns:
            Physical address, which is what the device uses, and the number of bytes that are contiguous from there, at
            most ``size``.

        Raises:
            UnsupportedError: the kernel can't (before 7.3), or what is attached is not a noiommu device.
            VfioIoctlError: EPERM without CAP_SYS_RAWIO; ENOENT when nothing is mapped there.
            MalformedReplyError: the kernel names more bytes than it was asked for, or none.
        """
        hints = {errno.EPERM: "Physical addresses are told to who has CAP_SYS_RAWIO"}
        fields = {"ioas_id": self._live(), "iova": iova, "length": size}
        reply = command(
            self.iommufd.fd,
            requests.IOMMU_IOAS_NOIOMMU_GET_PA,
            "struct iommu_ioas_noiommu_get_pa",
            hints=hints,
            **fields,
        )
        if not 0 < reply.length <= size:
            raise MalformedReplyError(f"{reply.length} bytes are contiguous at IOVA {iova:#x}, of {size}")
        return int(reply.out_phys), int(reply.length)

    # -- ranges and options

    def ranges(self) -> IoasRanges:
        """Ask which IOVAs can be mapped: ``IOMMU_IOAS_IOVA_RANGES``.

        Raises:
            MalformedReplyError: the list is absurd, or grows without end.
        """
        count = 16
        for _ in range(_ROUNDS):
            buffer = ffi.new("struct iommu_iova_range[]", count)
            ctype = "struct iommu_ioas_iova_ranges"
            fields = {"ioas_id": self._live(), "num_iovas": count, "allowed_iovas": address(buffer)}
            reply = ffi.new(f"{ctype} *", {"size": ffi.sizeof(ctype), **fields})
            try:
                send(self.iommufd.fd, requests.IOMMU_IOAS_IOVA_RANGES, reply)
            except VfioIoctlError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
            if reply.num_iovas <= count:
                pairs = [(int(each.start), int(each.last)) for each in buffer[0 : reply.num_iovas]]
                return _read_ranges(pairs, int(reply.out_iova_alignment))
            count = int(reply.num_iovas)
            if count * ffi.sizeof("struct iommu_iova_range") > MAX_REPLY:
                raise MalformedReplyError(f"{self!r} has {count} ranges of IOVAs")
        raise MalformedReplyError(f"the ranges of {self!r} still grow, at {count}")

    def allow_iovas(self, ranges: Iterable[IovaRange]) -> None:
        """Set IOVAs aside that must stay usable: ``IOMMU_IOAS_ALLOW_IOVAS``.

        The kernel chooses IOVAs from these only, and refuses to attach a device that can't use them all. An empty
        list lifts the restriction; each call replaces the one before.

        Raises:
            VfioIoctlError: EADDRINUSE when one is reserved already, by a device that is attached; EINVAL when they
                overlap.
        """
        wanted = [(each.first, each.last) for each in ranges]
        buffer = ffi.new("struct iommu_iova_range[]", wanted)
        hints = {
            errno.EADDRINUSE: "A device that is attached can't use all of these, or something else is mapped",
            errno.EINVAL: "The ranges overlap, or one of them has a single byte",
        }
        command(
            self.iommufd.fd,
            requests.IOMMU_IOAS_ALLOW_IOVAS,
            "struct iommu_ioas_allow_iovas",
            hints=hints,
            ioas_id=self._live(),
            num_iovas=len(wanted),
            allowed_iovas=address(buffer) if wanted else 0,
        )

    @property
    def huge_pages(self) -> bool:
        """Whether the IOMMU's large pages are used: ``IOMMU_OPTION_HUGE_PAGES``.

        Without them a container of mode compat-type1 can unmap any page of a mapping.

        Raises:
            VfioIoctlError: EINVAL when it is turned off while mappings with large alignment are there already.
        """
        option = self.iommufd._option(lib.IOMMU_OPTION_HUGE_PAGES, lib.IOMMU_OPTION_OP_GET, number=self._live())
        return bool(option.val64)

    @huge_pages.setter
    def huge_pages(self, value: bool) -> None:
        self.iommufd._option(lib.IOMMU_OPTION_HUGE_PAGES, lib.IOMMU_OPTION_OP_SET, int(value), self._live())

    # -- page tables

    def alloc_hwpt(self, device_id: int, *, flags: HwptAllocFlags = _NO_FLAGS, fault_id: int = 0) -> Hwpt:
        """Make page tables of their own for this address space, in the format of a device's IOMMU; see `Hwpt`.

        Without them, attaching a device to the address space makes or shares some that have no features.

        Raises:
            UnsupportedError: the IOMMU lacks what the flags ask for.
            VfioIoctlError: ENOENT when there is no such device.
        """
        return alloc_hwpt(self.iommufd, device_id, self._live(), flags=flags, fault_id=fault_id)

    # -- inside

    def _map(
        self, request: Request, ctype: str, iova: int | None, size: int, read: bool, write: bool, **fields: int
    ) -> Iova:
        def why(code: int) -> str:
            return explain.map_failed(code, size, None) if code in (errno.ENOMEM, errno.EFAULT) else ""

        flags = _flags(iova, read, write)
        try:
            fd = self.iommufd.fd
            reply = command(fd, request, ctype, hints=why, flags=flags, length=size, iova=iova or 0, **fields)
        except VfioIoctlError as error:
            raise _refused(error, iova, size) from error
        return Iova(reply.iova)


def _flags(iova: int | None, read: bool, write: bool) -> int:
    if not read and not write:
        raise ArgumentError("a mapping that devices may neither read nor write is of no use")
    return (
        (lib.IOMMU_IOAS_MAP_FIXED_IOVA if iova is not None else 0)
        | (lib.IOMMU_IOAS_MAP_READABLE if read else 0)
        | (lib.IOMMU_IOAS_MAP_WRITEABLE if write else 0)
    )


def _refused(error: VfioIoctlError, iova: int | None, size: int) -> VfioError:
    place = "no IOVA" if iova is None else f"IOVA {iova:#x}"
    if error.errno == errno.EEXIST:
        return IovaError(f"{place}, {size:#x} bytes: mapped already, at least in part")
    if error.errno == errno.ENOSPC:
        return IovaError(f"{place} is free for {size:#x} bytes; unmap something")
    return error


def _read_ranges(pairs: list[tuple[int, int]], alignment: int) -> IoasRanges:
    if alignment <= 0 or alignment & (alignment - 1):
        raise MalformedReplyError(f"IOVAs are to be aligned to {alignment:#x}, which is no power of two")
    for first, last in pairs:
        if first > last:
            raise MalformedReplyError(f"IOVA range {first:#x}..{last:#x} ends before it begins")
    return IoasRanges(tuple(IovaRange(first, last) for first, last in sorted(pairs)), alignment)
