"""Bitmaps of pages that were written to, as type1, page tables of iommufd and devices themselves report them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator

from vfio_user._uapi import ffi
from vfio_user.addresses import Iova, IovaRange
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError

__all__ = ["DirtyBitmap"]

_WORD = 8
_LARGEST = 1 << 31  # bytes of bitmap; VFIO_IOMMU_DIRTY_PAGES takes less


class DirtyBitmap:
    """Which pages of a range of IOVAs were written to.

    A bit for each page, least significant first, in words of 64 bits of the machine's byte order.

    Lifetime:
        Owns its memory; nothing to close.
    Locking:
        None. The kernel writes to it during the request that reports; afterwards it is constant.
    """

    __slots__ = ("_words", "iova", "page_size", "size")

    def __init__(self, iova: int, size: int, page_size: int) -> None:
        """Make an empty one, for a request to fill.

        Args:
            iova: first of the range, a multiple of ``page_size``.
            size: bytes of the range, likewise, above 0.
            page_size: bytes that a bit stands for, a power of two.

        Raises:
            AlignmentError: not such multiples.
            ArgumentError: no such page size, or a range that would need more than 2 GiB of bits.
        """
        if page_size <= 0 or page_size & (page_size - 1):
            raise ArgumentError(f"page size {page_size:#x} is not a power of two")
        if iova % page_size or size % page_size or size <= 0 or iova < 0:
            raise AlignmentError(f"IOVA {iova:#x} and size {size:#x} must be multiples of the page size {page_size:#x}")
        self.iova = Iova(iova)
        """First of the range."""
        self.size = size
        """Bytes of the range."""
        self.page_size = page_size
        """Bytes that a bit stands for."""
        words = -(-self.num_pages // (8 * _WORD))
        if words * _WORD > _LARGEST:
            raise ArgumentError(f"{self.num_pages} pages need too long a bitmap; ask for parts of the range")
        self._words = ffi.new("uint64_t[]", words)

    @property
    def num_pages(self) -> int:
        """Number of pages of the range."""
        return self.size // self.page_size

    @property
    def address(self) -> int:
        """Address of the bits."""
        return int(ffi.cast("uintptr_t", self._words))

    @property
    def num_bytes(self) -> int:
        """Length of the bits in bytes, a multiple of 8."""
        return len(self._words) * _WORD

    def __bytes__(self) -> bytes:
        return bytes(ffi.buffer(self._words))

    def merge(self, other: DirtyBitmap) -> None:
        """Add the pages of another bitmap of the same range.

        Raises:
            ArgumentError: its range or page size is another.
        """
        if (other.iova, other.size, other.page_size) != (self.iova, self.size, self.page_size):
            raise ArgumentError(f"{other!r} is not of the same pages as {self!r}")
        both = self._number() | other._number()
        ffi.buffer(self._words)[:] = _little_endian(both.to_bytes(self.num_bytes, "little"))

    def _number(self) -> int:
        # Bits behind the last page mean nothing, whatever the kernel left there.
        return int.from_bytes(_little_endian(bytes(self)), "little") & ((1 << self.num_pages) - 1)

    @property
    def count(self) -> int:
        """Number of pages that were written to."""
        return self._number().bit_count()

    def __contains__(self, iova: int) -> bool:
        page = (iova - self.iova) // self.page_size
        if not 0 <= page < self.num_pages:
            raise BoundsError(f"IOVA {iova:#x} is outside of {self!r}")
        return bool(self._words[page // 64] >> page % 64 & 1)

    def __iter__(self) -> Iterator[Iova]:
        """Give the IOVA of each page that was written to, ascending."""
        for each in self.ranges():
            for iova in range(each.first, each.last + 1, self.page_size):
                yield Iova(iova)

    def ranges(self) -> Iterator[IovaRange]:
        """Give the ranges that were written to, ascending; pages that touch are one range."""
        bits, page = self._number(), 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            page += skip
            length = (~bits & (bits + 1)).bit_length() - 1
            bits >>= length
            first = self.iova + page * self.page_size
            yield IovaRange(first, first + length * self.page_size - 1)
            page += length

    def __repr__(self) -> str:
        last = self.iova + self.size - 1
        return f"<DirtyBitmap {self.iova:#x}..{last:#x} {self.count} of {self.num_pages} pages>"


def _little_endian(words: bytes) -> bytes:
    """Make little-endian words of the machine's, which is its own opposite."""
    if sys.byteorder == "little":
        return words
    swapped = array("Q", words)
    swapped.byteswap()
    return swapped.tobytes()
