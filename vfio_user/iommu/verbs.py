"""The verbs of an address space that give memory to devices."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from vfio_user.addresses import Iova, Vaddr
from vfio_user.errors import AlignmentError, ArgumentError, UnsupportedError, VfioOSError
from vfio_user.iommu.buffer import DmaBuffer
from vfio_user.iommu.mapping import DmaMapping
from vfio_user.iommu.pool import DmaPool
from vfio_user.iommu.scatter import Scatter, gather, view_of
from vfio_user.kernel.mman import Backing, Memory, address_of, allocate

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vfio_user.iommu.mapper import Mapper

__all__ = ["MapVerbs"]


class MapVerbs:
    """The half of an `AddressSpace` that maps.

    Lifetime:
        See `AddressSpace`.
    Locking:
        See `AddressSpace`.
    """

    _mapper: Mapper

    def map(
        self,
        buffer: Buffer,
        *,
        iova: int | None = None,
        read: bool = True,
        write: bool = True,
        iova_limit: int | None = None,
    ) -> DmaMapping:
        """Map memory of the caller's: any contiguous buffer that starts and ends on a page.

        Args:
            buffer: the memory, such as an `mmap.mmap` or a numpy array over one. It is kept alive while mapped.
            iova: where; by default the address space chooses.
            read: devices may read it.
            write: devices may write it; the buffer must be writable then.
            iova_limit: the IOVA range ends at or below it: ``1 << 28`` for a device with 28 address bits.

        Raises:
            AlignmentError: address, size or IOVA is not a multiple of the IOMMU's page size.
            IovaError: the IOVA is taken, outside of `iova_ranges`, or none is free.
            VfioIoctlError: the kernel refused (``VFIO_IOMMU_MAP_DMA``, ``IOMMU_IOAS_MAP``): ENOMEM beyond the limit of
                locked memory, ENOSPC beyond that of mappings, EFAULT for memory that is not there.
        """
        view = view_of(buffer, write=write)
        return self.map_address(
            address_of(view),
            view.nbytes,
            iova=iova,
            read=read,
            write=write,
            iova_limit=iova_limit,
            keepalive=view,
        )

    def map_address(
        self,
        vaddr: int,
        size: int,
        *,
        iova: int | None = None,
        read: bool = True,
        write: bool = True,
        iova_limit: int | None = None,
        keepalive: object = None,
    ) -> DmaMapping:
        """Map memory by its address; ``keepalive`` is held as long as it is mapped. Raises as `map` does."""
        _require_rights(read, write)
        page = self._mapper.require_ready().page_size
        if vaddr % page or size % page or size <= 0:
            raise AlignmentError(
                f"address {vaddr:#x} and size {size:#x} must be multiples of the IOMMU's page size {page:#x}; "
                "alloc() gives such memory"
            )
        backend = self._mapper.backend

        def at(place: Iova | None) -> Iova:
            return backend.map(place, vaddr, size, read=read, write=write)

        return self._mapper.map(at, Vaddr(vaddr), size, iova=iova, limit=iova_limit, keepalive=keepalive)

    def adopt(self, buffer: Buffer, iova: int, *, read: bool = True, write: bool = True) -> DmaMapping:
        """Take over what is mapped at an IOVA: the same memory, which this process has at another address.

        The second half of `invalidate_vaddrs`, in the process that goes on (``VFIO_DMA_MAP_FLAG_VADDR``; modes type1
        and type1v2). Devices notice nothing. The memory is charged to this process from now on.

        Args:
            buffer: all of the memory, such as an `mmap.mmap` of the memory file that was mapped.
            iova: where it begins.
            read: devices may read it; what the mapping allows is not changed by this.
            write: devices may write it.

        Returns:
            The mapping; one of the same place that this address space had made has ended with that.

        Raises:
            IovaError: this address space has something else there.
            UnsupportedError: the mode can't.
            VfioIoctlError: ENOENT when nothing is mapped there; EINVAL when another size is, or its address was not
                invalidated before; ENOMEM beyond this process's limit of locked memory.
        """
        view = view_of(buffer, write=write)
        vaddr, size = address_of(view), view.nbytes
        backend = self._mapper.backend

        def again(place: Iova | None) -> Iova:
            return backend.map(place, vaddr, size, read=read, write=write)

        return self._mapper.adopt(Iova(iova), Vaddr(vaddr), size, again, view)

    def adopt_file(self, fd: int, buffer: Buffer, iova: int) -> DmaMapping:
        """Take over what is mapped at an IOVA by its memory file, for reading and writing: modes over an iommufd.

        The kernel knows no address of it, so nothing is asked of it; `Iommufd.change_process` has charged the memory
        to this process before.

        Args:
            fd: the memory file, which was mapped from its start.
            buffer: all of it, as this process has it.
            iova: where it begins.

        Raises:
            IovaError: this address space has something else there.
            UnsupportedError: the mode maps by address; `adopt` is for that.
        """
        if not self._mapper.backend.maps_files:
            raise UnsupportedError(f"mode {self._mapper.backend.mode.value} maps memory by its address: adopt()")
        view = view_of(buffer, write=True)
        at = self._file(fd, 0, view.nbytes, read=True, write=True)
        return self._mapper.adopt(Iova(iova), address_of(view), view.nbytes, at, view, by_address=False)

    def map_many(
        self,
        buffers: Iterable[Buffer],
        *,
        iova: int | None = None,
        read: bool = True,
        write: bool = True,
        iova_limit: int | None = None,
    ) -> DmaMapping:
        """Map memory of the caller's from many places as one: devices find the buffers one after the other.

        One IOVA range, one call into C that makes a request for each buffer (buffers that abut in this process share
        one), and one request that unmaps all of it. As the kernel's own ``dma_map_sg()``.

        Args:
            buffers: see `map`; each starts and ends on a page.
            iova: of the first buffer; by default the address space chooses.
            read: devices may read it.
            write: devices may write it; the buffers must be writable then.
            iova_limit: see `map`.

        Raises:
            ArgumentError: there is no buffer, or one that can't be mapped.
            UnsupportedError: nothing is translated, so several places can't become one.
            AlignmentError, IovaError, VfioIoctlError: see `map`; nothing is mapped then.
        """
        _require_rights(read, write)
        views = [view_of(buffer, write=write) for buffer in buffers]
        return self._mapper.map_scatter(
            gather(views), read=read, write=write, iova=iova, limit=iova_limit, keepalive=views
        )

    def map_addresses(
        self,
        vaddrs: Iterable[int],
        size: int,
        *,
        iova: int | None = None,
        read: bool = True,
        write: bool = True,
        iova_limit: int | None = None,
        keepalive: object = None,
    ) -> DmaMapping:
        """Map pieces of one size by their addresses, as one; ``keepalive`` is held as long as they are mapped.

        See `map_many`. Nothing is done in Python for each piece when ``vaddrs`` is an ``array("Q")``.
        """
        _require_rights(read, write)
        scatter = Scatter.of_equal(vaddrs, size)
        return self._mapper.map_scatter(
            scatter, read=read, write=write, iova=iova, limit=iova_limit, keepalive=keepalive
        )

    def map_file(
        self,
        fd: int,
        size: int,
        *,
        offset: int = 0,
        iova: int | None = None,
        read: bool = True,
        write: bool = True,
        iova_limit: int | None = None,
        keepalive: object = None,
    ) -> DmaMapping:
        """Map a part of a memory file.

        With iommufd it needs no address in this process, and may be a dma-buf of a device's region too; elsewhere it is
        mapped into this process first.

        Args:
            fd: the file; may be closed afterwards.
            size: bytes, whole pages.
            offset: where in the file, on a page.
            iova: where; by default the address space chooses.
            read: devices may read it.
            write: devices may write it.
            iova_limit: the IOVA range ends at or below it.
            keepalive: held as long as it is mapped.

        Raises:
            AlignmentError: offset, size or IOVA is not a multiple of the page size.
            IovaError: as `map`.
            UnsupportedError: the kernel can't map this kind of file for devices.
            VfioOSError: the file is not one that can be mapped.
        """
        page = self._mapper.require_ready().page_size
        if offset % page or size % page or size <= 0 or offset < 0:
            raise AlignmentError(f"offset {offset:#x} and size {size:#x} must be multiples of the page size {page:#x}")
        _require_rights(read, write)
        if self._mapper.backend.maps_files:
            with suppress(UnsupportedError):  # of kernels before 6.13, which map memory by its address only
                at = self._file(fd, offset, size, read=read, write=write)
                return self._mapper.map(at, None, size, iova=iova, limit=iova_limit, keepalive=keepalive)
        view = view_of(_map_here(fd, offset, size, write), write=write)
        return self.map_address(
            address_of(view),
            size,
            iova=iova,
            read=read,
            write=write,
            iova_limit=iova_limit,
            keepalive=(view, keepalive),
        )

    def _file(self, fd: int, offset: int, size: int, *, read: bool, write: bool) -> Callable[[Iova | None], Iova]:
        backend = self._mapper.backend

        def at(place: Iova | None) -> Iova:
            return backend.map_file(place, fd, offset, size, read=read, write=write)

        return at

    def alloc(
        self,
        size: int,
        *,
        iova_limit: int | None = None,
        backing: Backing | str = Backing.ANONYMOUS,
        iova: int | None = None,
    ) -> DmaBuffer:
        """Allocate zeroed memory and map it for reading and writing.

        Args:
            size: bytes; rounded up to whole pages of the backing.
            iova_limit: the IOVA range ends at or below it: ``1 << 28`` for a device with 28 address bits.
            backing: ``"anonymous"``, ``"memfd"``, ``"huge2m"`` or ``"huge1g"``.
            iova: where; by default the address space chooses.

        Without an IOMMU the memory is physically contiguous, which beyond a page takes huge pages.

        Raises:
            IovaError: no IOVA is free; without an IOMMU, no contiguous memory.
            VfioOSError: no memory, or no huge pages; the message says how to get some.
            ArgumentError: the size is not positive, or there is no such backing.
        """
        try:
            kind = Backing(backing)
        except ValueError:
            names = ", ".join(each.value for each in Backing)
            raise ArgumentError(f"{backing!r} is not a backing; there are: {names}") from None
        self._mapper.require_ready()
        memory = allocate(size, kind, contiguous=not self._mapper.backend.mode.translates)
        try:
            mapping = self._map_memory(memory, iova, iova_limit)
        except BaseException:
            if memory.fd >= 0:
                os.close(memory.fd)
            raise
        return DmaBuffer(memory, mapping)

    def _map_memory(self, memory: Memory, iova: int | None, limit: int | None) -> DmaMapping:
        if memory.fd >= 0 and self._mapper.backend.maps_files:
            # By its file, so that it can change hands (IOMMU_IOAS_CHANGE_PROCESS).
            with suppress(UnsupportedError):
                at = self._file(memory.fd, 0, memory.size, read=True, write=True)
                return self._mapper.map(at, memory.address, memory.size, iova=iova, limit=limit, keepalive=memory)
        return self.map_address(memory.address, memory.size, iova=iova, iova_limit=limit, keepalive=memory)

    def pool(
        self,
        buffer_size: int,
        *,
        chunk_size: int = 2 << 20,
        iova_limit: int | None = None,
        backing: Backing | str = Backing.ANONYMOUS,
    ) -> DmaPool:
        """Make a pool of small buffers, carved out of few large mappings."""
        from vfio_user.iommu.pool import DmaPool

        return DmaPool(self, buffer_size, chunk_size=chunk_size, iova_limit=iova_limit, backing=backing)


def _require_rights(read: bool, write: bool) -> None:
    if not (read or write):
        raise ArgumentError("a mapping that devices may neither read nor write is of no use")


def _map_here(fd: int, offset: int, size: int, write: bool) -> mmap.mmap:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    try:
        return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection, offset=offset)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        hint = "A file that can't be mapped into a process needs mode iommufd"
        raise VfioOSError(code or errno.EINVAL, f"map {size} bytes of file {fd} at {offset:#x}", hint) from error
