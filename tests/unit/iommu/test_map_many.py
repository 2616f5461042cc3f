"""Memory from many places as one range of IOVAs."""

from __future__ import annotations

import gc
import mmap
from array import array

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.iommu.fake_backend import PAGE, FakeBackend
from vfio_user.errors import AlignmentError, ArgumentError, IovaError, VfioIoctlError
from vfio_user.iommu import AddressSpace
from vfio_user.iommu.scatter import Scatter
from vfio_user.kernel.mman import address_of

Pages = list[memoryview]


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, 16 * PAGE)


@pytest.fixture
def pages(memory: mmap.mmap) -> Pages:
    """Eight pages that do not abut."""
    return [memoryview(memory)[at : at + PAGE] for at in range(0, 16 * PAGE, 2 * PAGE)]


def let_go(pages: Pages, memory: mmap.mmap) -> None:
    """Close the memory, which nobody else may have a view of."""
    pages.clear()
    gc.collect()
    memory.close()


def refuse_beyond(iova: int, backend: FakeBackend) -> None:
    def refuse(place: int, vaddr: int, size: int) -> None:
        if place >= iova:
            raise VfioIoctlError(12, "VFIO_IOMMU_MAP_DMA")

    backend.before["map"] = refuse


def test_devices_find_buffers_one_after_the_other(space: AddressSpace, backend: FakeBackend, pages: Pages) -> None:
    memory = mmap.mmap(-1, 16 * PAGE)
    apart = [memoryview(memory)[4 * n * PAGE : (4 * n + 1 + n % 2) * PAGE] for n in range(4)]
    mapping = space.map_many(apart)
    assert mapping.size == 6 * PAGE
    base = address_of(memoryview(memory))
    places = [(0, 0, 1), (1, 4, 2), (3, 8, 1), (4, 12, 2)]
    assert backend.mapped == {
        mapping.iova + at * PAGE: (base + first * PAGE, count * PAGE, True, True) for at, first, count in places
    }
    assert mapping.vaddr is None
    assert mapping.offset_of(base, 1) is None, "its memory is in several places"
    with pytest.raises(BufferError):
        memory.close()
    backend.calls.clear()
    mapping.unmap()
    assert backend.calls == ["unmap"]
    del apart
    memory.close()


def test_what_abuts_here_is_one_piece(space: AddressSpace, backend: FakeBackend) -> None:
    memory = memoryview(mmap.mmap(-1, 4 * PAGE))
    mapping = space.map_many([memory[n * PAGE : (n + 1) * PAGE] for n in range(4)])
    assert len(backend.mapped) == 1
    assert mapping.vaddr == address_of(memory)
    assert mapping.offset_of(address_of(memory) + 5000, 10) == 5000


def test_addresses_without_an_object_for_each(space: AddressSpace, backend: FakeBackend) -> None:
    memory = mmap.mmap(-1, 64 * PAGE)
    base = address_of(memoryview(memory))
    vaddrs = array("Q", range(base, base + 64 * PAGE, 2 * PAGE))
    mapping = space.map_addresses(vaddrs, PAGE, keepalive=memoryview(memory), write=False)
    assert [backend.mapped[mapping.iova + n * PAGE] for n in range(32)] == [
        (vaddr, PAGE, True, False) for vaddr in vaddrs
    ]
    with pytest.raises(BufferError):
        memory.close()
    assert space.unmap_many([mapping]) == 32 * PAGE
    memory.close()


def test_place_and_limit(space: AddressSpace, pages: Pages) -> None:
    assert space.map_many(pages, iova=0x20_0000).iova == 0x20_0000
    with pytest.raises(IovaError, match="mapped already"):
        space.map_many(pages, iova=0x20_7000)
    assert space.map_many(pages, iova_limit=1 << 21).iova < (1 << 21) - 8 * PAGE + 1


def test_refusal_half_way_leaves_nothing(
    space: AddressSpace, backend: FakeBackend, pages: Pages, memory: mmap.mmap
) -> None:
    before = space.mappings
    refuse_beyond(0x10_0000 + 5 * PAGE, backend)
    with pytest.raises(VfioIoctlError):
        space.map_many(pages, iova=0x10_0000)
    assert backend.mapped == {}
    assert space.mappings == before
    backend.before.clear()
    space.map_many(pages, iova=0x10_0000).unmap()
    let_go(pages, memory)


def test_what_can_not_be_taken_back_is_kept(
    space: AddressSpace, backend: FakeBackend, pages: Pages, memory: mmap.mmap
) -> None:
    refuse_beyond(0x10_0000 + 5 * PAGE, backend)
    backend.refused = {0x10_0000}
    with pytest.raises(VfioIoctlError) as caught:
        space.map_many(pages, iova=0x10_0000)
    assert "stay mapped" in caught.value.__notes__[0]
    del caught
    (kept,) = space.mappings
    assert (kept.iova, kept.size) == (0x10_0000, 5 * PAGE)
    with pytest.raises(BufferError):
        let_go(pages, memory)
    backend.refused = set()
    backend.before.clear()
    assert space.alloc(3 * PAGE, iova=0x10_5000).iova == 0x10_5000, "the others' IOVAs are free"
    kept.unmap()
    let_go(pages, memory)


def test_a_lie_about_what_was_taken_back_keeps_it_too(space: AddressSpace, backend: FakeBackend, pages: Pages) -> None:
    refuse_beyond(0x10_0000 + 2 * PAGE, backend)
    backend.short = PAGE
    with pytest.raises(VfioIoctlError):
        space.map_many(pages, iova=0x10_0000)
    backend.short = 0
    assert [each.size for each in space.mappings] == [2 * PAGE]
    assert space.unmap_all() == 2 * PAGE


def test_first_refused_needs_no_taking_back(space: AddressSpace, backend: FakeBackend, pages: Pages) -> None:
    refuse_beyond(0, backend)
    with pytest.raises(VfioIoctlError):
        space.map_many(pages)
    assert "unmap" not in backend.calls


def test_what_can_not_be_mapped(space: AddressSpace, pages: Pages) -> None:
    with pytest.raises(ArgumentError, match="nothing to map"):
        space.map_many([])
    with pytest.raises(ArgumentError, match="nothing to map"):
        space.map_addresses([], PAGE)
    with pytest.raises(ArgumentError, match="not positive"):
        space.map_addresses([0x1000], 0)
    with pytest.raises(ArgumentError, match="not a list of addresses"):
        space.map_addresses([-1], PAGE)
    with pytest.raises(ArgumentError, match="not a list of addresses"):
        space.map_addresses(["a"], PAGE)  # type: ignore[list-item]
    with pytest.raises(AlignmentError, match="page size"):
        space.map_addresses([0x1000, 0x2800], PAGE)
    with pytest.raises(AlignmentError):
        space.map_addresses([0x1000, 0x4000], 100)
    with pytest.raises(ArgumentError, match="no buffer"):
        space.map_many([pages[0], 17])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="read-only"):
        space.map_many([bytes(PAGE)])
    with pytest.raises(ArgumentError, match="not contiguous"):
        space.map_many([numpy.zeros((2, PAGE), "u1").T.data])
    with pytest.raises(ArgumentError, match="of no use"):
        space.map_many(pages, read=False, write=False)
    with pytest.raises(ArgumentError, match="of no use"):
        space.map_addresses([0x1000], PAGE, read=False, write=False)
    assert space.mappings == ()


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), min_size=1),
)
def test_pieces_cover_what_was_given_in_its_order(given_pieces: list[tuple[int, int]]) -> None:
    scatter = Scatter.of((first * PAGE, count * PAGE) for first, count in given_pieces)
    wanted = [first * PAGE + n * PAGE for first, count in given_pieces for n in range(count)]
    found = [
        vaddr + at for vaddr, size in zip(scatter.vaddrs, scatter.sizes, strict=True) for at in range(0, size, PAGE)
    ]
    assert found == wanted
    assert scatter.total == len(wanted) * PAGE
    ends = [vaddr + size for vaddr, size in zip(scatter.vaddrs, scatter.sizes, strict=True)]
    assert all(end != begin for end, begin in zip(ends, scatter.vaddrs[1:], strict=False)), "as few as can be"


@given(st.lists(st.integers(0, 30), min_size=1))
def test_equal_pieces_are_as_any(places: list[int]) -> None:
    vaddrs = [place * PAGE for place in places]
    equal, any_ = Scatter.of_equal(vaddrs, PAGE), Scatter.of((vaddr, PAGE) for vaddr in vaddrs)
    assert (equal.vaddrs, equal.sizes, equal.total) == (any_.vaddrs, any_.sizes, any_.total)
    assert list(equal.places(0x7000)) == list(any_.places(0x7000))
