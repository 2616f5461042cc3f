"""PRP lists: an independent walker, written as a controller reads them, must find the same memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.drivers.nvme.prp import list_stride, prp_fields, prp_pages
from vfio_user.errors import AlignmentError, BoundsError

PAGE = 4096
LIST = 0x7000_0000


def walk(prp1: int, prp2: int, size: int, lists: dict[int, int], page: int) -> list[tuple[int, int]]:
    """Return the ``(iova, size)`` pieces of a transfer, as the device finds them."""
    first = min(size, page - prp1 % page)
    pieces = [(prp1, first)]
    left = size - first
    if left == 0:
        return pieces
    if left <= page:
        return [*pieces, (prp2, left)]
    at = prp2
    while left:
        entry = lists[at]
        if (at + 8) % page == 0 and left > page:
            at = entry
            continue
        assert entry % page == 0, "an entry of a list names a whole page"
        pieces.append((entry, min(left, page)))
        left -= min(left, page)
        at += 8
    return pieces


def merged(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for iova, size in pieces:
        if out and sum(out[-1]) == iova:
            out[-1] = (out[-1][0], out[-1][1] + size)
        else:
            out.append((iova, size))
    return out


def lists_at(iova: int, data: bytes) -> dict[int, int]:
    return {iova + 8 * i: value for i, (value,) in enumerate(struct.iter_unpack("<Q", data))}


@settings(deadline=None)
@given(
    iova=st.integers(1, 1 << 36).map(lambda n: n * 4),
    size=st.integers(1, 6 << 20),
    page=st.sampled_from([4096, 8192, 65536]),
)
def test_a_contiguous_transfer_of_any_place_and_size_is_found_whole(iova: int, size: int, page: int) -> None:
    pages = prp_pages([(iova, size)], page)
    fields = prp_fields(pages, 1 << 48, list_stride(size, page), page)
    lists = lists_at(1 << 48, fields.list_bytes)
    assert merged(walk(fields.prp1, fields.prp2, size, lists, page)) == [(iova, size)]


@st.composite
def scattered(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Segments in distinct 16 MiB places, page aligned where PRPs want it."""
    count = draw(st.integers(1, 12))
    places = draw(st.lists(st.integers(1, 4000), min_size=count, max_size=count, unique=True))
    segments = []
    for index, place in enumerate(places):
        start = draw(st.integers(0, PAGE // 4 - 1)) * 4 if index == 0 else 0
        pages = draw(st.integers(1, 700))
        tail = draw(st.integers(start % PAGE + 1, PAGE)) if index == count - 1 and pages == 1 else PAGE
        segments.append((place * (16 << 20) + start, (pages - 1) * PAGE + tail - start))
    return segments


@settings(deadline=None)
@given(scattered(), st.integers(0, 511))
def test_scattered_segments_are_found_in_order_from_a_list_anywhere_in_a_page(
    segments: list[tuple[int, int]], slot: int
) -> None:
    size = sum(length for _, length in segments)
    list_iova = (1 << 48) + 8 * slot
    fields = prp_fields(prp_pages(segments, PAGE), list_iova, 1 << 30, PAGE)
    pieces = walk(fields.prp1, fields.prp2, size, lists_at(list_iova, fields.list_bytes), PAGE)
    assert merged(pieces) == merged(segments)


@settings(deadline=None)
@given(st.integers(1, 64 << 20), st.integers(0, PAGE // 4 - 1))
def test_the_stride_has_room_for_the_worst_transfer(max_transfer: int, offset: int) -> None:
    stride = list_stride(max_transfer, PAGE)
    assert PAGE % stride == 0 or stride % PAGE == 0
    pages = prp_pages([(0x1000_0000 + offset * 4, max_transfer)], PAGE)
    assert len(prp_fields(pages, LIST + 3 * stride, stride, PAGE).list_bytes) <= stride


def test_one_and_two_pages_need_no_list() -> None:
    assert prp_fields(prp_pages([(0x1000, 4096)], PAGE), 0, 0, PAGE) == (0x1000, 0, b"")
    assert prp_fields(prp_pages([(0x1004, 4096)], PAGE), 0, 0, PAGE) == (0x1004, 0x2000, b"")
    assert prp_fields(prp_pages([(0x1FFC, 4)], PAGE), 0, 0, PAGE) == (0x1FFC, 0, b"")


@pytest.mark.parametrize(
    ("segments", "error", "words"),
    [
        ([], BoundsError, "at least"),
        ([(0x1000, 0)], BoundsError, "empty"),
        ([(-4096, 4096)], BoundsError, "64 bits"),
        ([((1 << 64) - 4096, 8192)], BoundsError, "64 bits"),
        ([(0x1002, 512)], AlignmentError, "multiple of 4"),
        ([(0x1000, 4096), (0x5004, 512)], AlignmentError, "multiple of the page size"),
        ([(0x1000, 512), (0x5000, 512)], AlignmentError, "inside of a page"),
    ],
)
def test_what_prps_cannot_express_is_refused(
    segments: list[tuple[int, int]], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        prp_pages(segments, PAGE)


def test_a_list_that_does_not_fit_or_is_unaligned_is_refused() -> None:
    pages = prp_pages([(0, 4 * PAGE)], PAGE)
    with pytest.raises(BoundsError, match="24 bytes"):
        prp_fields(pages, LIST, 16, PAGE)
    with pytest.raises(AlignmentError, match="multiple of 8"):
        prp_fields(pages, LIST + 4, 64, PAGE)
