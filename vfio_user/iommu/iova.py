"""Allocate IOVAs. Pure book-keeping: no file descriptor, no system call."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from vfio_user.addresses import Iova, IovaRange
from vfio_user.errors import AlignmentError, ArgumentError, IovaError

__all__ = ["IovaAllocator"]

_LIMIT_32BIT = 1 << 32
_Span: TypeAlias = tuple[int, int]  # first and last, both inclusive


class IovaAllocator:
    """Hand out IOVAs from the usable ranges of an IOMMU.

    Addresses are taken from the top of what the caller's limit allows. Without a limit they come from below 4 GiB
    while there is room, as the kernel's own DMA mappings do, because many devices have 32 address bits; the low end
    stays free for devices that have fewer. The first page is handed out only to who asks for it by name: an address
    of 0 means "no buffer" to many devices.

    Lifetime:
        Lives as long as its address space; nothing to close.
    Locking:
        None of its own: the address-space lock covers it.
    """

    def __init__(self, ranges: Iterable[IovaRange], page_size: int) -> None:
        self.page_size = page_size
        """Granule in bytes, a power of two: every address and size is a multiple of it."""
        self.ranges: tuple[IovaRange, ...] = _merged(ranges)
        """The usable ranges, ordered; ranges that touch are one."""
        # Both lists are sorted, disjoint and never adjacent.
        self._usable = self._whole_pages()
        self._free = list(self._usable)
        self._avoided: list[_Span] = []

    def _whole_pages(self) -> list[_Span]:
        page = self.page_size
        aligned = ((-(-each.first // page) * page, (each.last + 1) // page * page) for each in self.ranges)
        return [(first, end - 1) for first, end in aligned if first < end]

    def restrict(self, ranges: Iterable[IovaRange]) -> None:
        """Take over the usable ranges after a device joined, which may have fewer; what is taken stays taken."""
        self.ranges = _merged(ranges)
        self._usable = self._whole_pages()
        self._free = _common(self._free, self._usable)

    def avoid(self, ranges: Iterable[IovaRange]) -> None:
        """Name ranges that `allocate` leaves alone; `reserve` still gives them to who asks for them by name."""
        self._avoided = [(each.first, each.last) for each in _merged(ranges)]

    @property
    def free_bytes(self) -> int:
        """Number of bytes not handed out."""
        return sum(last - first + 1 for first, last in self._free)

    def allocate(self, size: int, *, alignment: int | None = None, limit: int | None = None) -> Iova:
        """Take ``size`` bytes.

        Args:
            size: bytes; rounded up to the granule.
            alignment: the address is a multiple of it; a power of two, at least the granule.
            limit: the last byte lies below it: ``1 << 28`` for a device with 28 address bits.

        Raises:
            ArgumentError: the size is not above 0.
            AlignmentError: the alignment is not a power of two.
            IovaError: no free range is large enough below the limit.
        """
        if size <= 0:
            raise ArgumentError(f"size {size} is not positive")
        alignment = self.page_size if alignment is None else alignment
        if alignment <= 0 or alignment & (alignment - 1):
            raise AlignmentError(f"alignment {alignment:#x} is not a power of two")
        alignment = max(alignment, self.page_size)
        size = -(-size // self.page_size) * self.page_size
        for bound in (limit,) if limit is not None else (_LIMIT_32BIT, 1 << 64):
            iova = self._highest(size, alignment, bound)
            if iova is not None:
                self._take(iova, size)
                return Iova(iova)
        below = f" below {limit:#x}" if limit is not None else ""
        raise IovaError(
            f"no free IOVA range of {size:#x} bytes{below}, aligned to {alignment:#x}; "
            f"{self.free_bytes:#x} bytes are free in all; unmap something, or raise the limit"
        )

    def reserve(self, iova: int, size: int) -> None:
        """Take exactly the given range.

        Raises:
            AlignmentError: not a multiple of the granule.
            ArgumentError: the size is not above 0, or the IOVA is negative.
            IovaError: outside of the usable ranges, or some of it is taken.
        """
        if iova % self.page_size or size % self.page_size:
            raise AlignmentError(
                f"IOVA {iova:#x} and size {size:#x} must be multiples of {self.page_size:#x}, the IOMMU's page size"
            )
        if size <= 0 or iova < 0:
            raise ArgumentError(f"IOVA {iova:#x}, size {size:#x}: no such range")
        if not any(usable.contains(iova, size) for usable in self.ranges):
            usable_text = ", ".join(map(str, self.ranges))
            raise IovaError(
                f"IOVA {iova:#x}..{iova + size - 1:#x} is outside of what this IOMMU translates: {usable_text}"
            )
        if not self._is_free(iova, size):
            raise IovaError(f"IOVA {iova:#x}..{iova + size - 1:#x} is mapped already, at least in part")
        self._take(iova, size)

    def free(self, iova: int, size: int) -> None:
        """Give a range back that was allocated or reserved."""
        # What is not usable any more, since a device joined, is not handed out again.
        for first, last in _common([(iova, iova + size - 1)], self._usable):
            at = bisect_right(self._free, (first, last))
            if at < len(self._free) and self._free[at][0] == last + 1:
                last = self._free.pop(at)[1]
            if at > 0 and self._free[at - 1][1] == first - 1:
                first = self._free.pop(at - 1)[0]
            insort(self._free, (first, last))

    def reset(self) -> None:
        """Take everything back that was allocated or reserved."""
        self._free = list(self._usable)

    def _highest(self, size: int, alignment: int, limit: int) -> int | None:
        for first, last in self._choices():
            iova = (min(last + 1, limit) - size) // alignment * alignment
            if iova >= max(first, self.page_size):
                return iova
        return None

    def _choices(self) -> Iterator[_Span]:
        """Give the free spans without what is avoided, from the top."""
        for first, last in reversed(self._free):
            for a, b in reversed(self._avoided):
                if a <= last and b >= first:
                    if b < last:
                        yield (b + 1, last)
                    last = a - 1
            if first <= last:
                yield (first, last)

    def _index(self, iova: int) -> int:
        return bisect_right(self._free, (iova, 1 << 64)) - 1

    def _is_free(self, iova: int, size: int) -> bool:
        at = self._index(iova)
        return at >= 0 and self._free[at][1] >= iova + size - 1

    def _take(self, iova: int, size: int) -> None:
        at = self._index(iova)
        first, last = self._free.pop(at)
        if iova + size - 1 < last:
            self._free.insert(at, (iova + size, last))
        if first < iova:
            self._free.insert(at, (first, iova - 1))


def _merged(ranges: Iterable[IovaRange]) -> tuple[IovaRange, ...]:
    merged: list[IovaRange] = []
    for each in sorted(ranges):
        if merged and each.first <= merged[-1].last + 1:
            before = merged.pop()
            each = IovaRange(before.first, max(before.last, each.last))
        merged.append(each)
    return tuple(merged)


def _common(some: list[_Span], others: list[_Span]) -> list[_Span]:
    overlaps = ((max(a, c), min(b, d)) for a, b in some for c, d in others)
    return [(first, last) for first, last in overlaps if first <= last]
