"""Address spaces: what devices see of memory."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user.addresses import Iova, IovaRange, Vaddr
from vfio_user.errors import (
    AlignmentError,
    ArgumentError,
    ClosedError,
    ForkedError,
    IovaError,
    UnsupportedError,
    VfioError,
    VfioOSError,
)
from vfio_user.iommu import explain
from vfio_user.iommu.backend import IommuBackend, open_backend
from vfio_user.iommu.buffer import DmaBuffer
from vfio_user.iommu.gate import Gate
from vfio_user.iommu.iova import IovaAllocator
from vfio_user.iommu.mapping import DmaMapping
from vfio_user.iommu.modes import IommuMode, best_mode
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import Backing, address_of, allocate
from vfio_user.kernel.sysfs import VfioNode, memory_windows

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vfio_user.iommu.pool import DmaPool

__all__ = ["AddressSpace"]

_HUGE_ALIGNMENTS = (1 << 30, 2 << 20)


class AddressSpace:
    """The memory that a set of devices can reach, and the IOVAs at which they reach it.

    Every device opened with ``address_space=`` shares it. What it is made of (container and groups, ...) is its
    `mode`.

    Lifetime:
        `close()`, or the ``with`` block, unmaps everything at once. Devices may be closed before or after: the
        container stays open until the last device that is attached goes.
    Locking:
        All methods may be called from any thread. The address-space lock covers the book-keeping only; it is never
        held over a map or unmap, so several threads pin memory at the same time.
    """

    def __init__(self, mode: IommuMode | str = "auto", *, allow_noiommu: bool = False) -> None:
        """Open the back end.

        Args:
            mode: one of `IommuMode`, or ``"auto"``: the best one that the machine has.
            allow_noiommu: must be given for the modes without an IOMMU, which protect nothing.

        Raises:
            UnsupportedError: the machine has no such mode.
            VfioOSError: the node can't be opened; the message says what to do.
        """
        chosen = best_mode() if mode == "auto" else IommuMode.parse(mode)
        if not chosen.translates and not allow_noiommu:
            raise ArgumentError(explain.noiommu_not_allowed("the device"))
        self._backend: IommuBackend = open_backend(chosen)
        self._lock = threading.Lock()
        self._gate = Gate()
        self._attach_lock = threading.Lock()
        self._allocator: IovaAllocator | None = None
        self._mappings: dict[Iova, DmaMapping] = {}
        self._closed = False
        self._users = 1  # this object itself, and one for each attached device

    # -- what it is

    @property
    def mode(self) -> IommuMode:
        """Which back end it uses."""
        return self._backend.mode

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self._closed

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """The IOVAs that can be mapped; needs an attached device. None where nothing is translated."""
        return self._live_allocator().ranges

    @property
    def page_sizes(self) -> int:
        """Bit mask of the IOMMU's page sizes; the lowest is the granule of every address and size."""
        self._require_open()
        return self._backend.info().page_sizes

    @property
    def dma_avail(self) -> int | None:
        """How many more mappings the kernel allows; `None` where it does not count."""
        self._require_open()
        return self._backend.info().dma_avail

    @property
    def mappings(self) -> tuple[DmaMapping, ...]:
        """The mappings there are, ordered by IOVA."""
        with self._lock:
            return tuple(self._mappings[iova] for iova in sorted(self._mappings))

    # -- devices

    @property
    def backend(self) -> IommuBackend:
        """What it is made of, for what has no verb here: an `IommufdBackend` has the iommufd, ... ."""
        return self._backend

    def attach(self, node: VfioNode, *, vf_token: str | None = None) -> OwnedFd:
        """Let a device use this address space, and open it. `vfio_user.open` is the usual way.

        The caller closes the returned descriptor, which takes the device out, and then calls `detach`.
        """
        with self._attach_lock:
            self._require_open()
            device = self._backend.attach(node, vf_token=vf_token)
            try:
                self._refresh_ranges()
            except BaseException:
                device.close()
                raise
            self._users += 1
            return device

    def detach(self) -> None:
        """Say that a device that was attached is closed."""
        with self._attach_lock:
            self._drop_user()

    # -- memory

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
            VfioIoctlError: the kernel refused; the message names the limit.
        """
        try:
            view = memoryview(buffer)
        except TypeError:
            raise ArgumentError(
                f"{type(buffer).__name__} has no buffer to map; pass mmap, numpy array, ... or use alloc()"
            ) from None
        if not view.c_contiguous:
            raise ArgumentError("the buffer is not contiguous, or not in C's order of dimensions")
        if write and view.readonly:
            raise ArgumentError("the buffer is read-only; pass write=False, or a writable one")
        if view.nbytes == 0:
            raise ArgumentError("the buffer is empty")
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
        """Map memory by its address; ``keepalive`` is held as long as it is mapped. See `map`."""
        if not (read or write):
            raise ArgumentError("a mapping that devices may neither read nor write is of no use")
        page = self._live_allocator().page_size
        if vaddr % page or size % page or size <= 0:
            raise AlignmentError(
                f"address {vaddr:#x} and size {size:#x} must be multiples of the IOMMU's page size {page:#x}; "
                "alloc() gives such memory"
            )

        def at(place: Iova | None) -> Iova:
            return self._backend.map(place, vaddr, size, read=read, write=write)

        return self._map(at, Vaddr(vaddr), size, iova, iova_limit, keepalive)

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
        page = self._live_allocator().page_size
        if offset % page or size % page or size <= 0 or offset < 0:
            raise AlignmentError(f"offset {offset:#x} and size {size:#x} must be multiples of the page size {page:#x}")
        if not (read or write):
            raise ArgumentError("a mapping that devices may neither read nor write is of no use")
        if not self._backend.maps_files:
            memory = _map_here(fd, offset, size, write)
            return self.map(memory, iova=iova, read=read, write=write, iova_limit=iova_limit)

        def at(place: Iova | None) -> Iova:
            return self._backend.map_file(place, fd, offset, size, read=read, write=write)

        return self._map(at, None, size, iova, iova_limit, keepalive)

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
        """
        try:
            kind = Backing(backing)
        except ValueError:
            names = ", ".join(each.value for each in Backing)
            raise ArgumentError(f"{backing!r} is not a backing; there are: {names}") from None
        self._live_allocator()
        memory = allocate(size, kind, contiguous=not self.mode.translates)
        try:
            mapping = self.map_address(memory.address, memory.size, iova=iova, iova_limit=iova_limit, keepalive=memory)
        except BaseException:
            if memory.fd >= 0:
                os.close(memory.fd)
            raise
        return DmaBuffer(memory, mapping)

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

    def unmap_all(self) -> int:
        """Take everything from the devices in one call; give the number of bytes.

        Raises:
            VfioError: the kernel unmapped less than there was.
        """
        self._require_open()
        return self._sweep()

    def close(self) -> None:
        """Unmap everything and let go; closing twice does nothing.

        Raises:
            VfioError: see `unmap_all`; it is closed nevertheless, and with the last device the mappings end.
        """
        with self._attach_lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._sweep()
            except ForkedError:
                pass  # the mappings are the parent's
            finally:
                self._drop_user()

    # -- inside

    def _map(
        self,
        at: Callable[[Iova | None], Iova],
        vaddr: Vaddr | None,
        size: int,
        iova: int | None,
        limit: int | None,
        keepalive: object,
    ) -> DmaMapping:
        """Find a place, let ``at`` map something there, and keep the books."""
        with self._gate.together():
            allocator = self._live_allocator()
            place = self._take_iova(allocator, iova, size, limit)
            try:
                address = at(place)
            except BaseException:
                if place is not None:
                    with self._lock:
                        allocator.free(place, size)
                raise
            if limit is not None and address + size > limit:  # only where the place is not ours to choose
                self._backend.unmap(address, size)
                raise IovaError(
                    f"{address:#x}, {size:#x} bytes, reaches beyond the limit {limit:#x}; {explain.no_choice()}"
                )
            mapping = DmaMapping(self, address, vaddr, size, keepalive, at)
            with self._lock:
                self._mappings[address] = mapping
            return mapping

    def _unmap(self, mapping: DmaMapping) -> None:
        with self._gate.together():
            with self._lock:
                # Out of the table first: of two threads that unmap the same mapping, one makes the call.
                if self._mappings.get(mapping.iova) is not mapping:
                    return
                del self._mappings[mapping.iova]
            try:
                unmapped = 0 if mapping.suspended else self._backend.unmap(mapping.iova, mapping.size)
                if unmapped != mapping.size and not mapping.suspended:
                    raise VfioError(
                        f"the kernel unmapped {unmapped:#x} bytes of {mapping!r}; its memory is kept, "
                        "because a device may still write to it"
                    )
            except BaseException:
                with self._lock:
                    self._mappings[mapping.iova] = mapping
                raise
            self._end([mapping])

    def _sweep(self) -> int:
        with self._gate.alone():
            ending = self.mappings
            unmapped = self._backend.unmap_all()
            expected = sum(mapping.size for mapping in ending if not mapping.suspended)
            if unmapped < expected:
                raise VfioError(f"the kernel unmapped {unmapped:#x} bytes of {expected:#x}; the memory is kept")
            self._end(ending)
            return unmapped

    def _end(self, mappings: Iterable[DmaMapping]) -> None:
        with self._lock:
            for mapping in mappings:
                self._mappings.pop(mapping.iova, None)
                if self._allocator is not None:
                    self._allocator.free(mapping.iova, mapping.size)
        for mapping in mappings:
            mapping._ended()

    def _take_iova(self, allocator: IovaAllocator, iova: int | None, size: int, limit: int | None) -> Iova | None:
        if not self.mode.translates:
            if iova is not None:
                raise ArgumentError(f"IOVA {iova:#x} can't be chosen: {explain.no_choice()}")
            return None
        with self._lock:
            if iova is not None:
                if limit is not None and iova + size > limit:
                    raise IovaError(f"IOVA {iova:#x}, {size:#x} bytes, reaches beyond the limit {limit:#x}")
                allocator.reserve(iova, size)
                return Iova(iova)
            # Large mappings at large alignments: the IOMMU can then use its large pages.
            alignment = next((huge for huge in _HUGE_ALIGNMENTS if size >= huge), None)
            try:
                return allocator.allocate(size, alignment=alignment, limit=limit)
            except IovaError:
                return allocator.allocate(size, limit=limit)

    def _refresh_ranges(self) -> None:
        """Read the usable ranges again: each group that joins can take some away."""
        info = self._backend.info()
        with self._lock:
            if self._allocator is None:
                self._allocator = IovaAllocator(info.iova_ranges, info.page_sizes & -info.page_sizes)
                # Below a switch, a device's access to an address that is also a BAR's may go to that BAR and never
                # reach the IOMMU; the kernel keeps its own DMA mappings out of there too.
                self._allocator.avoid(memory_windows())
            else:
                self._allocator.restrict(info.iova_ranges)

    def _live_allocator(self) -> IovaAllocator:
        self._require_open()
        if self._allocator is None:
            raise UnsupportedError("no device is attached to this address space yet; open one with address_space=")
        return self._allocator

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the address space is closed")

    def _drop_user(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._backend.close()
            self._end(self.mappings)  # the kernel has ended those that it refused to unmap, if there were any

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<AddressSpace {self.mode.value} {len(self._mappings)} mappings{state}>"


def _map_here(fd: int, offset: int, size: int, write: bool) -> mmap.mmap:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    try:
        return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection, offset=offset)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        hint = "A file that can't be mapped into a process needs mode iommufd"
        raise VfioOSError(code or errno.EINVAL, f"map {size} bytes of file {fd} at {offset:#x}", hint) from error
