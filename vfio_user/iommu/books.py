"""The books of an address space: what is mapped where, and which IOVAs are free."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from vfio_user.addresses import Iova, IovaRange
from vfio_user.errors import IovaError
from vfio_user.iommu.iova import IovaAllocator
from vfio_user.iommu.mapping import DmaMapping

__all__ = ["Books"]

_T = TypeVar("_T")

_HUGE_ALIGNMENTS = (1 << 30, 2 << 20)


class Books:
    """What an address space has given to its devices: mappings, the memory that each keeps alive, and IOVAs.

    A mapping is in the books from when the kernel has made it until the kernel has confirmed its end. Its state is
    whether it is in the books, so that thousands end without a look at each.

    Lifetime:
        As its address space.
    Locking:
        Each method takes the address-space lock, which this is. What ended mappings kept alive is let go of by `let_go`
        only, which the caller calls without any lock held: finalisers may do anything, unmap something too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._allocator: IovaAllocator | None = None
        self._kept: dict[DmaMapping, object] = {}
        self._ending: set[DmaMapping] = set()
        self._suspended: set[DmaMapping] = set()
        self._num_bytes = 0
        self._dropped: list[object] = []

    # -- IOVAs

    @property
    def allocator(self) -> IovaAllocator | None:
        """Who knows the usable IOVAs; `None` before a device has told them."""
        return self._allocator

    def learn(self, ranges: Iterable[IovaRange], page_size: int, avoided: Iterable[IovaRange] = ()) -> None:
        """Take over the usable IOVAs; each group of devices that joins can take some away.

        Args:
            ranges: what is usable.
            page_size: the IOMMU's granule.
            avoided: what is given to nobody who does not ask for it by name; told once, at first.
        """
        with self._lock:
            if self._allocator is None:
                self._allocator = IovaAllocator(ranges, page_size)
                self._allocator.avoid(avoided)
            else:
                self._allocator.restrict(ranges)

    def reserve(self, allocator: IovaAllocator, iova: int | None, size: int, limit: int | None) -> Iova:
        """Take IOVAs: those that are named, or any below the limit.

        Raises:
            AlignmentError: ``iova`` is not a multiple of the page size.
            IovaError: it is taken or not usable, or none is free.
        """
        with self._lock:
            if iova is not None:
                if limit is not None and iova + size > limit:
                    raise IovaError(f"IOVA {iova:#x}, {size:#x} bytes, reaches beyond the limit {limit:#x}")
                allocator.reserve(iova, size)
                return Iova(iova)
            # Large mappings at large alignments: the IOMMU can then use its large pages.
            for huge in _HUGE_ALIGNMENTS:
                if size >= huge:
                    try:
                        return allocator.allocate(size, alignment=huge, limit=limit)
                    except IovaError:
                        break
            return allocator.allocate(size, limit=limit)

    def release(self, iova: int, size: int) -> None:
        """Give IOVAs back that were reserved and never mapped."""
        with self._lock:
            self._free(iova, size)

    # -- mappings

    def add(self, mapping: DmaMapping, keepalive: object) -> None:
        """Note a mapping that the kernel has made, and what it keeps alive."""
        with self._lock:
            self._kept[mapping] = keepalive
            self._num_bytes += mapping.size

    def holds(self, mapping: object) -> bool:
        """Tell whether a mapping has not ended."""
        return mapping in self._kept

    def is_suspended(self, mapping: DmaMapping) -> bool:
        """Tell whether a mapping is taken from the devices for a while."""
        return mapping in self._suspended

    @property
    def num_bytes(self) -> int:
        """How many bytes devices reach."""
        return self._num_bytes

    @property
    def num_suspended(self) -> int:
        """How many mappings are taken from the devices for a while."""
        return len(self._suspended)

    def sort_out(self, items: Sequence[_T]) -> tuple[list[DmaMapping], list[_T]]:
        """Split objects into mappings that are in the books, and others."""
        if self.is_all(items):
            return cast("list[DmaMapping]", list(items)), []
        kept = self._kept
        mine = [item for item in items if item in kept]
        others = [item for item in items if item not in kept] if len(mine) < len(items) else []
        return cast("list[DmaMapping]", mine), others

    def begin(self, mapping: DmaMapping) -> bool:
        """Claim the right to unmap a mapping: of two threads that want to, one gets it."""
        with self._lock:
            if mapping not in self._kept or mapping in self._ending:
                return False
            self._ending.add(mapping)
            return True

    def cancel(self, mapping: DmaMapping) -> None:
        """Say that a claimed mapping was not unmapped after all."""
        with self._lock:
            self._ending.discard(mapping)

    def end(self, mappings: Sequence[DmaMapping], spans: Iterable[tuple[int, int]]) -> None:
        """Take mappings out that the kernel has ended.

        Args:
            mappings: each once, and all of them in the books.
            spans: first IOVA, and the one after the last, of what those cover that were not suspended.
        """
        with self._lock:
            self._dropped.append(list(map(self._kept.pop, mappings)))
            if self._ending:
                self._ending.difference_update(mappings)
            for begin, end in spans:
                self._num_bytes -= end - begin
                self._free(begin, end - begin)
            if self._suspended:
                away = self._suspended.intersection(mappings)
                self._suspended -= away
                for mapping in away:
                    self._free(mapping.iova, mapping.size)

    def end_all(self) -> None:
        """Take everything out: the kernel has ended all mappings."""
        with self._lock:
            self._dropped.append(self._kept)
            self._kept = {}
            self._ending.clear()
            self._suspended.clear()
            self._num_bytes = 0
            if self._allocator is not None:
                self._allocator.reset()

    def let_go(self) -> None:
        """Let go of what mappings kept alive that have ended."""
        if self._dropped:
            with self._lock:
                dropped, self._dropped = self._dropped, []
            del dropped

    def suspend(self, mappings: Iterable[DmaMapping]) -> None:
        """Note that devices do not reach these mappings for a while; their IOVAs stay taken."""
        with self._lock:
            for mapping in mappings:
                if mapping in self._kept and mapping not in self._suspended:
                    self._suspended.add(mapping)
                    self._num_bytes -= mapping.size

    def resume(self, mapping: DmaMapping) -> None:
        """Note that devices reach a suspended mapping again."""
        with self._lock:
            if mapping in self._suspended:
                self._suspended.remove(mapping)
                self._num_bytes += mapping.size

    def is_all(self, mappings: Sequence[object]) -> bool:
        """Tell whether these are all the mappings there are; may say no when they are in another order."""
        return (
            len(mappings) == len(self._kept)
            and not self._suspended
            and all(map(operator.is_, self._kept, mappings))  # no method of what a caller passed is called
        )

    def __len__(self) -> int:
        return len(self._kept)

    def in_order(self) -> tuple[DmaMapping, ...]:
        """Give the mappings by IOVA."""
        with self._lock:
            found = list(self._kept)
        return tuple(sorted(found, key=lambda mapping: mapping.iova))

    def _free(self, iova: int, size: int) -> None:
        if self._allocator is not None:
            self._allocator.free(iova, size)
