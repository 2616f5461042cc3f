"""IOVA allocator: against a naive model that knows every page by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vfio_user.addresses import IovaRange
from vfio_user.errors import AlignmentError, ArgumentError, IovaError
from vfio_user.iommu.iova import IovaAllocator

PAGE = 0x1000
TOP = 64
"""Pages that the model knows; some of them above 4 GiB."""
BASE = (1 << 32) - 40 * PAGE


def usable(draw_from: int = TOP) -> st.SearchStrategy[list[IovaRange]]:
    """Some disjoint ranges within the pages of the model; their ends need not be whole pages."""

    def build(cuts: list[int]) -> list[IovaRange]:
        ends = sorted(set(cuts))
        pairs = zip(ends[::2], ends[1::2], strict=False)
        return [IovaRange(BASE + first, BASE + last - 1) for first, last in pairs]

    cut = st.integers(0, draw_from * 4).map(lambda quarter: quarter * PAGE // 4)
    return st.lists(cut, min_size=2, max_size=8).map(build).filter(bool)


def pages_of(ranges: list[IovaRange]) -> set[int]:
    return {page for page in range(TOP) if any(r.contains(BASE + page * PAGE, PAGE) for r in ranges)}


class AgainstPages(RuleBasedStateMachine):
    """Whatever is asked for, the allocator agrees with sets of page numbers."""

    def __init__(self) -> None:
        super().__init__()
        whole = [IovaRange(BASE, BASE + TOP * PAGE - 1)]
        self.allocator = IovaAllocator(whole, PAGE)
        self.usable = pages_of(whole)
        self.taken: dict[int, int] = {}

    @property
    def used(self) -> set[int]:
        return {page + n for page, count in self.taken.items() for n in range(count)}

    def fits(self, page: int, count: int) -> bool:
        wanted = set(range(page, page + count))
        return wanted <= self.usable and not wanted & self.used

    @rule(
        count=st.integers(1, 12),
        alignment=st.sampled_from([None, PAGE, 4 * PAGE, 16 * PAGE]),
        limit=st.none() | st.integers(0, TOP),
    )
    def allocate(self, count: int, alignment: int | None, limit: int | None) -> None:
        step = (alignment or PAGE) // PAGE
        offset = BASE // PAGE
        possible = [
            page
            for page in range(TOP)
            if (offset + page) % step == 0 and self.fits(page, count) and (limit is None or page + count <= limit)
        ]
        bound = None if limit is None else BASE + limit * PAGE
        if not possible:
            with pytest.raises(IovaError, match="no free IOVA range"):
                self.allocator.allocate(count * PAGE, alignment=alignment, limit=bound)
            return
        iova = self.allocator.allocate(count * PAGE, alignment=alignment, limit=bound)
        page = (iova - BASE) // PAGE
        low = [each for each in possible if BASE + (each + count) * PAGE <= 1 << 32]
        assert page == max(low if limit is None and low else possible)
        self.taken[page] = count

    @rule(page=st.integers(0, TOP - 1), count=st.integers(1, 12))
    def reserve(self, page: int, count: int) -> None:
        if self.fits(page, count):
            self.allocator.reserve(BASE + page * PAGE, count * PAGE)
            self.taken[page] = count
        else:
            with pytest.raises(IovaError):
                self.allocator.reserve(BASE + page * PAGE, count * PAGE)

    @precondition(lambda self: bool(self.taken))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.taken)))
        self.allocator.free(BASE + page * PAGE, self.taken.pop(page) * PAGE)

    @rule(ranges=usable())
    def restrict(self, ranges: list[IovaRange]) -> None:
        # The kernel only ever takes ranges away, and refuses a device that would take away what is mapped.
        pages = pages_of(ranges)
        if self.used <= pages <= self.usable:
            self.allocator.restrict(ranges)
            self.usable = pages

    @invariant()
    def counts_the_same_bytes(self) -> None:
        assert self.allocator.free_bytes == len(self.usable - self.used) * PAGE


AgainstPages.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAgainstPages = AgainstPages.TestCase


@given(usable())
def test_only_whole_pages_are_handed_out(ranges: list[IovaRange]) -> None:
    allocator = IovaAllocator(ranges, PAGE)
    assert allocator.free_bytes == len(pages_of(ranges)) * PAGE
    assert allocator.ranges == tuple(sorted(ranges))


def test_ranges_that_touch_or_overlap_are_one() -> None:
    allocator = IovaAllocator([IovaRange(0x8000, 0xBFFF), IovaRange(0x4000, 0x7FFF), IovaRange(0x6000, 0x9FFF)], PAGE)
    assert allocator.free_bytes == 0x8000
    assert allocator.allocate(0x8000) == 0x4000


def test_freed_memory_outside_of_what_is_left_is_not_handed_out_again() -> None:
    allocator = IovaAllocator([IovaRange(0x1000, 0x8FFF)], PAGE)
    iova = allocator.allocate(0x8000)
    allocator.restrict([IovaRange(0x1000, 0x4FFF)])
    allocator.free(iova, 0x8000)
    assert allocator.free_bytes == 0x4000
    with pytest.raises(IovaError):
        allocator.allocate(0x5000)


def test_first_page_only_by_name() -> None:
    allocator = IovaAllocator([IovaRange(0, 0x1FFF)], PAGE)
    assert allocator.allocate(PAGE) == 0x1000
    with pytest.raises(IovaError):
        allocator.allocate(PAGE)
    allocator.reserve(0, PAGE)
    assert allocator.free_bytes == 0


def test_size_is_rounded_up_to_pages() -> None:
    allocator = IovaAllocator([IovaRange(0x1000, 0x3FFF)], PAGE)
    assert allocator.allocate(1) == 0x3000
    assert allocator.allocate(PAGE + 1) == 0x1000


def test_last_byte_of_the_address_space_can_be_used() -> None:
    allocator = IovaAllocator([IovaRange((1 << 64) - PAGE, (1 << 64) - 1)], PAGE)
    assert allocator.allocate(PAGE) == (1 << 64) - PAGE


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_can_not_be(size: int) -> None:
    allocator = IovaAllocator([IovaRange(0x1000, 0x8FFF)], PAGE)
    with pytest.raises(ArgumentError, match="not positive"):
        allocator.allocate(size)
    with pytest.raises(ArgumentError):
        allocator.reserve(0x1000, size)


@pytest.mark.parametrize("alignment", [3, PAGE + 1, 3 * PAGE, -PAGE])
def test_alignment_is_a_power_of_two(alignment: int) -> None:
    allocator = IovaAllocator([IovaRange(0x1000, 0x8FFF)], PAGE)
    with pytest.raises(AlignmentError, match="power of two"):
        allocator.allocate(PAGE, alignment=alignment)


@pytest.mark.parametrize(("iova", "size"), [(0x1001, PAGE), (0x1000, PAGE + 1), (0x1000, 1)])
def test_reserved_ranges_are_whole_pages(iova: int, size: int) -> None:
    with pytest.raises(AlignmentError, match="0x1000, the IOMMU's page size"):
        IovaAllocator([IovaRange(0x1000, 0x8FFF)], PAGE).reserve(iova, size)


def test_refusals_say_which_ranges_there_are_and_what_is_taken() -> None:
    allocator = IovaAllocator([IovaRange(0x1000, 0x8FFF)], PAGE)
    with pytest.raises(IovaError, match=r"0x9000\.\.0x9fff is outside of .* 0x1000\.\.0x8fff"):
        allocator.reserve(0x9000, PAGE)
    with pytest.raises(ArgumentError, match="no such range"):
        allocator.reserve(-PAGE, PAGE)
    allocator.reserve(0x2000, PAGE)
    with pytest.raises(IovaError, match=r"0x1000\.\.0x2fff is mapped already"):
        allocator.reserve(0x1000, 2 * PAGE)
    with pytest.raises(IovaError, match=r"below 0x2000.* 0x7000 bytes are free in all"):
        allocator.allocate(2 * PAGE, limit=0x2000)


@given(
    avoided=st.lists(st.tuples(st.integers(0, 63), st.integers(1, 8)), max_size=5),
    sizes=st.lists(st.integers(1, 8), max_size=30),
)
def test_what_is_avoided_is_given_by_name_only(avoided: list[tuple[int, int]], sizes: list[int]) -> None:
    spans = [(first * PAGE, (first + pages) * PAGE - 1) for first, pages in avoided]
    allocator = IovaAllocator([IovaRange(0, 64 * PAGE - 1)], PAGE)
    allocator.avoid(IovaRange(*span) for span in spans)
    for pages in sizes:
        try:
            iova = allocator.allocate(pages * PAGE)
        except IovaError:
            break
        assert not any(first < iova + pages * PAGE and iova <= last for first, last in spans)
    for first, _ in spans:
        if first < 64 * PAGE:
            allocator.reserve(first, PAGE)
            allocator.free(first, PAGE)
