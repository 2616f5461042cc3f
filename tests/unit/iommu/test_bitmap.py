"""Bitmaps of dirty pages: counted, looked up and read as ranges, whatever their length."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user._uapi import ffi
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError
from vfio_user.iommu.bitmap import DirtyBitmap


def filled(iova: int, pages: int, page_size: int, dirty: set[int], *, junk: bool = False) -> DirtyBitmap:
    """Fill a bitmap as a kernel does: by words of the machine's byte order."""
    bitmap = DirtyBitmap(iova, pages * page_size, page_size)
    words = ffi.cast("uint64_t *", bitmap.address)
    left = range(pages, 8 * bitmap.num_bytes) if junk else ()  # what a kernel leaves behind the last page
    for page in (*dirty, *left):
        words[page // 64] |= 1 << page % 64
    return bitmap


@given(st.data(), st.integers(1, 300), st.sampled_from([4096, 16384, 2 << 20]), st.booleans())
def test_agrees_with_a_set(data: st.DataObject, pages: int, page_size: int, junk: bool) -> None:
    dirty = data.draw(st.sets(st.integers(0, pages - 1)))
    iova = data.draw(st.integers(0, 1 << 20)) * page_size
    bitmap = filled(iova, pages, page_size, dirty, junk=junk)
    assert bitmap.count == len(dirty)
    assert list(bitmap) == [iova + page * page_size for page in sorted(dirty)]
    for page in range(pages):
        assert (iova + page * page_size + page_size - 1 in bitmap) is (page in dirty)
    ranges = list(bitmap.ranges())
    assert sum(each.size for each in ranges) == len(dirty) * page_size
    for first, second in pairwise(ranges):
        assert first.last + 1 < second.first, "ascending, and as few as can be"


@given(st.data(), st.integers(1, 300))
def test_merged_it_has_the_pages_of_both(data: st.DataObject, pages: int) -> None:
    one, other = (data.draw(st.sets(st.integers(0, pages - 1))) for _ in range(2))
    bitmap = filled(0, pages, 4096, one)
    bitmap.merge(filled(0, pages, 4096, other, junk=True))
    assert list(bitmap) == [page * 4096 for page in sorted(one | other)]
    assert all((page * 4096 in bitmap) is (page in one | other) for page in range(pages))


def test_pages_outside_are_refused() -> None:
    bitmap = DirtyBitmap(0x10000, 0x4000, 0x1000)
    assert repr(bitmap) == "<DirtyBitmap 0x10000..0x13fff 0 of 4 pages>"
    for iova in (0xFFFF, 0x14000):
        with pytest.raises(BoundsError):
            assert iova in bitmap


def test_ranges_that_no_bitmap_has() -> None:
    for iova, size, page_size, kind in (
        (0, 4096, 0, ArgumentError),
        (0, 4096, 3000, ArgumentError),
        (1, 4096, 4096, AlignmentError),
        (0, 4097, 4096, AlignmentError),
        (0, 0, 4096, AlignmentError),
        (-4096, 4096, 4096, AlignmentError),
        (0, 1 << 50, 4096, ArgumentError),
    ):
        with pytest.raises(kind):
            DirtyBitmap(iova, size, page_size)
