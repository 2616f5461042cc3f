"""What makes and ends the mappings of an address space: the back end's verbs, in step with the books."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from vfio_user.addresses import Iova, Vaddr
from vfio_user.errors import ArgumentError, ClosedError, IovaError, UnsupportedError, VfioError
from vfio_user.iommu import explain, runs
from vfio_user.iommu.backend import IommuBackend
from vfio_user.iommu.books import Books
from vfio_user.iommu.buffer import DmaBuffer
from vfio_user.iommu.gate import Gate
from vfio_user.iommu.iova import IovaAllocator
from vfio_user.iommu.mapping import DmaMapping
from vfio_user.iommu.runs import Unmapped
from vfio_user.iommu.scatter import Scatter
from vfio_user.kernel.sysfs import memory_windows

__all__ = ["Mapper", "Unmappable", "mapping_of", "require_mappings"]

Unmappable: TypeAlias = DmaMapping | DmaBuffer
"""What can be unmapped."""


def require_mappings(items: Iterable[object]) -> None:
    """Refuse what is neither a `DmaMapping` nor a `DmaBuffer`.

    Raises:
        ArgumentError: something is neither.
    """
    for kind in set(map(type, items)):  # thousands are usual, of one kind
        if not issubclass(kind, (DmaMapping, DmaBuffer)):
            raise ArgumentError(f"{kind.__name__} is neither a DmaMapping nor a DmaBuffer")


def mapping_of(item: Unmappable) -> DmaMapping:
    """Give the mapping behind a buffer, or the mapping itself."""
    return item.mapping if isinstance(item, DmaBuffer) else item


class _PartlyMappedError(Exception):
    def __init__(self, error: VfioError, size: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.size = size


class Mapper:
    """The inner half of an `AddressSpace`; mappings know this one.

    Lifetime:
        As its address space. After `stop` nothing is mapped any more.
    Locking:
        Calls that concern one mapping run beside each other, a call that concerns many runs alone; see `Gate`.
    """

    def __init__(self, backend: IommuBackend) -> None:
        self.backend = backend
        """Who asks the kernel."""
        self.books = Books()
        """What is mapped where."""
        self.stopped = False
        """Whether `stop` was called."""
        self._gate = Gate()

    def require_ready(self) -> IovaAllocator:
        """Refuse before something is mapped that can't be; give who knows the usable IOVAs.

        Raises:
            ClosedError: the address space is closed.
            UnsupportedError: no device is attached yet.
        """
        if self.stopped:
            raise ClosedError("the address space is closed")
        if self.books.allocator is None:
            raise UnsupportedError("no device is attached to this address space yet; open one with address_space=")
        if not self.books.avoids:
            # Below a switch, a device's access to an address that is also a BAR's may go to that BAR and never reach
            # the IOMMU; the kernel keeps its own DMA mappings out of there too. Looked up by who maps, not by who only
            # opens: a machine has many functions.
            self.books.avoid(memory_windows())
        return self.books.allocator

    def learn(self) -> None:
        """Read the usable IOVAs again: each group that joins can take some away."""
        info = self.backend.info()
        self.books.learn(info.iova_ranges, info.page_sizes & -info.page_sizes)

    # -- one mapping

    def map(
        self,
        at: Callable[[Iova | None], Iova],
        vaddr: Vaddr | None,
        size: int,
        *,
        iova: int | None,
        limit: int | None,
        keepalive: object,
    ) -> DmaMapping:
        """Find a place, let ``at`` map something there, and keep the books."""
        with self._gate.together():
            allocator = self.require_ready()
            if self.backend.mode.translates:
                place = self.books.reserve(allocator, iova, size, limit)
                try:
                    at(place)
                except _PartlyMappedError as stuck:
                    # The kernel does not let go of what it has mapped: the memory is kept, as for any such mapping.
                    self.books.release(place + stuck.size, size - stuck.size)
                    self.books.add(DmaMapping(self, place, vaddr, stuck.size, at), keepalive)
                    raise stuck.error from None
                except BaseException:
                    self.books.release(place, size)
                    raise
            else:
                place = self._map_untranslated(at, size, iova, limit)
            mapping = DmaMapping(self, place, vaddr, size, at)
            self.books.add(mapping, keepalive)
            return mapping

    def _map_untranslated(
        self, at: Callable[[Iova | None], Iova], size: int, iova: int | None, limit: int | None
    ) -> Iova:
        if iova is not None:
            raise ArgumentError(f"IOVA {iova:#x} can't be chosen: {explain.no_choice()}")
        place = at(None)
        if limit is not None and place + size > limit:
            self.backend.unmap(place, size)
            raise IovaError(f"{place:#x}, {size:#x} bytes, reaches beyond the limit {limit:#x}; {explain.no_choice()}")
        return place

    def map_scatter(
        self, scatter: Scatter, *, read: bool, write: bool, iova: int | None, limit: int | None, keepalive: object
    ) -> DmaMapping:
        """Map pieces of memory one after the other; see `AddressSpace.map_many`."""
        scatter.require_aligned(self.require_ready().page_size)
        if len(scatter) > 1 and not self.backend.mode.translates:
            raise UnsupportedError(f"{len(scatter)} pieces can't be at one address: {explain.no_choice()}")

        def at(place: Iova | None) -> Iova:
            if place is None:
                return self.backend.map(None, scatter.vaddrs[0], scatter.total, read=read, write=write)
            done, error = self.backend.map_pieces(place, scatter, read=read, write=write)
            if error is not None:
                self._take_back(place, sum(scatter.sizes[:done]), error)
                raise error
            return place

        vaddr = Vaddr(scatter.vaddrs[0]) if len(scatter) == 1 else None
        return self.map(at, vaddr, scatter.total, iova=iova, limit=limit, keepalive=keepalive)

    def _take_back(self, place: Iova, size: int, error: VfioError) -> None:
        """Unmap the first pieces of many, after the next could not be mapped."""
        if not size:
            return
        try:
            unmapped = self.backend.unmap(place, size)
        except VfioError as failure:
            error.add_note(f"{size:#x} bytes at IOVA {place:#x} stay mapped: {failure}")
            raise _PartlyMappedError(error, size) from failure
        if unmapped != size:
            error.add_note(f"{size:#x} bytes at IOVA {place:#x} stay mapped: the kernel unmapped {unmapped:#x} of them")
            raise _PartlyMappedError(error, size)

    def adopt(
        self,
        iova: Iova,
        vaddr: Vaddr,
        size: int,
        again: Callable[[Iova | None], Iova],
        keepalive: object,
        *,
        by_address: bool = True,
    ) -> DmaMapping:
        """Take a mapping over that the kernel has, and which has a new address now; see `AddressSpace.adopt`."""
        with self._gate.alone():
            allocator = self.require_ready()
            old = self.books.at(iova)
            if old is None:
                self.books.reserve(allocator, iova, size, None)
            elif old.size != size or old.suspended:
                raise IovaError(f"{old!r} is not the mapping that has {size:#x} bytes at {iova:#x}")
            try:
                if by_address:
                    self.backend.update_vaddr(iova, size, vaddr)
            except BaseException:
                if old is None:
                    self.books.release(iova, size)
                raise
            mapping = DmaMapping(self, iova, vaddr, size, again)
            if old is not None:
                self.books.end((old,), ())
            self.books.add(mapping, keepalive)
        self.books.let_go()
        return mapping

    def unmap(self, mapping: DmaMapping, by: Callable[[Iova, int], int] | None = None) -> None:
        """Unmap one mapping, ``by`` the back end's verb or another; see `DmaMapping.unmap`."""
        books = self.books
        by = by or self.backend.unmap
        with self._gate.together():
            if not books.claim(mapping):
                return
            try:
                if mapping.suspended:
                    books.end((mapping,), ())
                    return
                unmapped = runs.ask(self.backend, by, mapping.iova, mapping.size)
                if unmapped != mapping.size:
                    raise runs.unconfirmed(mapping, unmapped)
            except BaseException:
                books.unclaim(mapping)
                raise
            books.end((mapping,), ((mapping.iova, mapping.size),))
        books.let_go()

    # -- many

    def unmap_many(self, items: Sequence[Unmappable], foreign: list[Unmappable] | None = None) -> Unmapped:
        """Unmap mappings of this address space; those that have ended are left out.

        Args:
            items: what to unmap.
            foreign: gets what is of another address space.

        Raises:
            ArgumentError: something is no mapping, or foreign and there is no list for it; nothing was unmapped.
        """
        buffers: list[DmaBuffer] = []
        merge = self.backend.mode.translates  # without an IOMMU there are no ranges that could be one
        with self._gate.alone():
            found, count, others = self.books.runs(items, merge)
            if others:
                mappings = self._resolve(others, foreign, buffers)
                if mappings:
                    items = [*items, *mappings]
                    found, count, _ = self.books.runs(items, merge)
            result = runs.unmap(self.backend, self.books, items, found, count)
        self.books.let_go()
        for buffer in buffers:
            if buffer.closed:
                buffer.close()  # its memory file
        return result

    def _resolve(
        self, items: Sequence[Unmappable], foreign: list[Unmappable] | None, buffers: list[DmaBuffer]
    ) -> list[DmaMapping]:
        """Give the mappings of buffers, and note which buffers and what of other address spaces there are."""
        mappings = []
        require_mappings(items)
        for each in items:
            mapping = mapping_of(each)
            if mapping._mapper is not self:
                if foreign is None:
                    raise ArgumentError(f"{mapping!r} is of another address space; UnmapBatch takes such")
                foreign.append(each)
            elif isinstance(each, DmaBuffer):
                buffers.append(each)
                mappings.append(mapping)
        return mappings

    def unmap_all(self) -> int:
        """Unmap everything; see `AddressSpace.unmap_all`."""
        with self._gate.alone():
            unmapped = runs.unmap_all(self.backend, self.books)
        self.books.let_go()
        return unmapped

    def stop(self) -> None:
        """Let nothing be mapped any more, and unmap everything. Raises as `unmap_all`."""
        self.stopped = True
        self.unmap_all()

    def end(self) -> None:
        """Close the back end; the kernel ends with it what it refused to unmap, if there was anything."""
        self.backend.close()
        self.books.end_all()
        self.books.let_go()

    # -- for a while

    def suspend(self, mappings: Iterable[DmaMapping]) -> None:
        """Take mappings from the devices; see `vfio_user.iommu.suspend`."""
        with self._gate.alone():
            chosen = [each for each in mappings if each.mapped]
            found, count, _ = self.books.runs(chosen, self.backend.mode.translates)
            _, failures = runs.unmap(self.backend, self.books, chosen, found, count, keep=True)
        if failures:
            raise failures[0]

    def resume(self, mapping: DmaMapping) -> None:
        """Give a mapping back to the devices; see `vfio_user.iommu.suspend`."""
        with self._gate.alone():
            if mapping.suspended:
                mapping._again(mapping.iova)
                self.books.resume(mapping)
