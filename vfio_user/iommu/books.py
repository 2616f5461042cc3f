"""The books of an address space: what is mapped where, and which IOVAs are free."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar, cast

from vfio_user._mmio import Ledger
from vfio_user.addresses import Iova, IovaRange
from vfio_user.errors import IovaError
from vfio_user.iommu.iova import IovaAllocator
from vfio_user.iommu.mapping import DmaMapping
from vfio_user.kernel import tracing

__all__ = ["Books", "Run"]

_T = TypeVar("_T")
Run: TypeAlias = tuple[int, int]
"""A range of IOVAs: the first, and the number of bytes."""

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
        self._windows: list[IovaRange] = []
        self.avoids = False
        """Whether `avoid` was called."""
        self._ledger = Ledger()
        self._dropped: list[object] = []

    # -- IOVAs

    @property
    def allocator(self) -> IovaAllocator | None:
        """Who knows the usable IOVAs; `None` before a device has told them."""
        return self._allocator

    def learn(self, ranges: Iterable[IovaRange], page_size: int) -> None:
        """Take over the usable IOVAs; each group of devices that joins can take some away.

        Args:
            ranges: what is usable.
            page_size: the IOMMU's granule.
        """
        with self._lock:
            for window in self._windows:
                ranges = _within(ranges, window)
            if self._allocator is None:
                self._allocator = IovaAllocator(ranges, page_size)
            else:
                self._allocator.restrict(ranges)

    def avoid(self, ranges: Iterable[IovaRange]) -> None:
        """Name what is given to nobody who does not ask for it by name; told once, after `learn`."""
        with self._lock:
            if self._allocator is not None:
                self._allocator.avoid(ranges)
                self.avoids = True

    def confine(self, window: IovaRange) -> None:
        """Take what is not within a window out of the usable IOVAs, for good."""
        with self._lock:
            self._windows.append(window)
            if self._allocator is not None:
                self._allocator.restrict(_within(self._allocator.ranges, window))

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
            self._ledger.add(mapping, keepalive)
        self._report()

    def holds(self, mapping: object) -> bool:
        """Tell whether a mapping has not ended."""
        return mapping in self._ledger

    def at(self, iova: int) -> DmaMapping | None:
        """Give the mapping that begins at an IOVA, if there is one."""
        with self._lock:
            found = cast("list[DmaMapping]", self._ledger.entries())
        return next((each for each in found if each.iova == iova), None)

    @property
    def num_bytes(self) -> int:
        """How many bytes devices reach."""
        return self._ledger.num_bytes

    @property
    def num_reached(self) -> int:
        """How many mappings devices reach: all but the suspended ones."""
        return len(self._ledger) - self._ledger.num_suspended

    def __len__(self) -> int:
        return len(self._ledger)

    def in_order(self) -> tuple[DmaMapping, ...]:
        """Give the mappings by IOVA."""
        with self._lock:
            found = cast("list[DmaMapping]", self._ledger.entries())
        return tuple(sorted(found, key=lambda mapping: mapping.iova))

    def runs(self, items: Sequence[_T], merge: bool) -> tuple[list[Run], int, list[_T]]:
        """Cover the mappings among some objects by as few ranges as can be.

        Args:
            items: any objects.
            merge: whether ranges that abut become one.

        Returns:
            The ranges in order; how many mappings that are; and the other objects: what is no mapping, or has ended, or
            is suspended.
        """
        with self._lock:
            return self._ledger.runs(items, merge)

    def claim(self, mapping: DmaMapping) -> bool:
        """Claim the right to unmap a mapping: of two threads that want to, one gets it."""
        with self._lock:
            return self._ledger.claim(mapping)

    def unclaim(self, mapping: DmaMapping) -> None:
        """Say that a claimed mapping was not unmapped after all."""
        with self._lock:
            self._ledger.unclaim(mapping)

    def end(self, items: Sequence[object], runs: Iterable[Run]) -> None:
        """Take the mappings among some objects out: the kernel has ended them.

        Args:
            items: any objects.
            runs: what the mappings among them cover, but for the suspended ones.
        """
        with self._lock:
            away: list[DmaMapping] = []
            if self._ledger.num_suspended:
                away = [each for each in items if isinstance(each, DmaMapping) and each.suspended]
            for mapping in away:
                if mapping in self._ledger:
                    self._free(mapping.iova, mapping.size)
                    self._dropped.append(self._ledger.end((mapping,)))
            self._dropped.append(self._ledger.end(items))
            for iova, size in runs:
                self._free(iova, size)
        self._report()

    def end_all(self) -> None:
        """Take everything out: the kernel has ended all mappings."""
        with self._lock:
            self._dropped.append(self._ledger.end_all())
            if self._allocator is not None:
                self._allocator.reset()
        self._report()

    def suspend(self, mappings: Iterable[DmaMapping]) -> None:
        """Note that devices do not reach these mappings for a while; their IOVAs stay taken."""
        with self._lock:
            for mapping in mappings:
                self._ledger.suspend(mapping)

    def resume(self, mapping: DmaMapping) -> None:
        """Note that devices reach a suspended mapping again."""
        with self._lock:
            self._ledger.resume(mapping)

    def let_go(self) -> None:
        """Let go of what mappings kept alive that have ended."""
        if self._dropped:
            with self._lock:
                dropped, self._dropped = self._dropped, []
            del dropped

    def _report(self) -> None:
        if tracing.sink is not None:
            tracing.sink.counter("mapped bytes", self.num_bytes)

    def _free(self, iova: int, size: int) -> None:
        if self._allocator is not None:
            self._allocator.free(iova, size)


def _within(ranges: Iterable[IovaRange], window: IovaRange) -> list[IovaRange]:
    clipped = ((max(each.first, window.first), min(each.last, window.last)) for each in ranges)
    return [IovaRange(first, last) for first, last in clipped if first <= last]
