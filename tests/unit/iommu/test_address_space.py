"""Address spaces: what is mapped, where, and what is refused."""

from __future__ import annotations

import gc
import mmap
import os
import weakref

import numpy
import pytest

from tests.guest.leaks import nothing_left
from tests.unit.iommu.fake_backend import PAGE, RANGES, FakeBackend
from vfio_user.addresses import IovaRange, PciAddress
from vfio_user.errors import (
    AlignmentError,
    ArgumentError,
    ClosedError,
    IovaError,
    UnsupportedError,
    VfioIoctlError,
    VfioOSError,
)
from vfio_user.iommu import AddressSpace, IommuMode
from vfio_user.kernel.mman import address_of
from vfio_user.kernel.sysfs import PciFunction

FUNCTION = PciFunction(PciAddress(0, 2, 0, 0))


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, 4 * PAGE)


def test_what_it_says_of_itself(space: AddressSpace, backend: FakeBackend) -> None:
    assert space.mode is IommuMode.TYPE1V2
    assert space.iova_ranges == RANGES
    assert space.page_sizes == backend.page_sizes
    assert space.dma_avail == 65535
    assert repr(space) == "<AddressSpace type1v2 0 mappings>"


def test_map_reaches_the_back_end_as_asked(space: AddressSpace, backend: FakeBackend, memory: mmap.mmap) -> None:
    with space.map(memory, iova=0x10_0000, write=False) as mapping:
        vaddr = address_of(memoryview(memory))
        assert backend.mapped == {0x10_0000: (vaddr, 4 * PAGE, True, False)}
        assert (mapping.iova, mapping.vaddr, mapping.size, mapping.mapped) == (0x10_0000, vaddr, 4 * PAGE, True)
        assert space.mappings == (mapping,)
        assert repr(mapping) == "<DmaMapping 0x100000..0x103fff>"
    assert backend.mapped == {}
    assert not mapping.mapped
    assert repr(mapping) == "<DmaMapping 0x100000..0x103fff unmapped>"


def test_iova_is_chosen_below_4_gib_and_below_the_limit(space: AddressSpace, memory: mmap.mmap) -> None:
    high, low = space.map(memory), space.map(memory, iova_limit=1 << 28)
    assert 1 << 28 < high.iova + high.size <= 1 << 32
    assert low.iova + low.size <= 1 << 28
    assert space.mappings == (low, high), "ordered by IOVA"


def test_large_mappings_get_large_alignment(space: AddressSpace) -> None:
    assert space.alloc(PAGE).iova % PAGE == 0
    assert space.alloc(3 << 20).iova % (2 << 20) == 0
    memory = mmap.mmap(-1, 1 << 30)
    assert space.map(memory).iova % (1 << 30) == 0


def test_alignment_gives_way_where_room_is_short(space: AddressSpace, memory: mmap.mmap) -> None:
    buffer = space.alloc(2 << 20, iova_limit=(2 << 20) + PAGE)
    assert buffer.iova == PAGE


def test_memory_is_kept_while_it_is_mapped(space: AddressSpace, memory: mmap.mmap) -> None:
    mapping = space.map(memory)
    with pytest.raises(BufferError):
        memory.close()
    mapping.unmap()
    memory.close()


def test_memory_file_is_mapped_by_way_of_this_process(space: AddressSpace, backend: FakeBackend) -> None:
    """Where the IOMMU takes no files; what the caller wants kept is kept until the mapping ends."""

    class Kept:
        pass

    kept = Kept()
    gone = weakref.ref(kept)
    file = os.memfd_create("file")
    os.truncate(file, 2 * PAGE)
    mapping = space.map_file(file, PAGE, offset=PAGE, write=False, keepalive=kept)
    os.close(file)
    assert backend.files == []
    assert [(size, read, write) for _, size, read, write in backend.mapped.values()] == [(PAGE, True, False)]
    del kept
    gc.collect()
    assert gone() is not None
    mapping.unmap()
    gc.collect()
    assert gone() is None


def test_numpy_array_over_pages(space: AddressSpace, memory: mmap.mmap) -> None:
    array = numpy.frombuffer(memory, dtype="<u4").reshape(64, -1)
    with space.map(array.data) as mapping:
        assert (mapping.vaddr, mapping.size) == (array.ctypes.data, 4 * PAGE)
    with pytest.raises(ArgumentError, match="not contiguous, or not in C's order"):
        space.map(array.T.data)


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_alloc(space: AddressSpace, backend: FakeBackend, backing: str) -> None:
    with nothing_left():
        with space.alloc(PAGE + 1, backing=backing) as buffer:
            assert buffer.size == 2 * PAGE
            assert backend.mapped[buffer.iova] == (address_of(buffer.view), 2 * PAGE, True, True)
        del buffer


# -- refused


def test_explicit_iova(space: AddressSpace, memory: mmap.mmap) -> None:
    with space.map(memory, iova=0), pytest.raises(IovaError, match=r"0x2000\.\.0x5fff is mapped already"):
        space.map(memory, iova=0x2000)
    with pytest.raises(IovaError, match=r"outside of what this IOMMU translates: 0x0\.\.0xfedfffff"):
        space.map(memory, iova=0xFEE0_0000)
    with pytest.raises(IovaError, match="reaches beyond the limit"):
        space.map(memory, iova=0x10_0000, iova_limit=0x10_0000 + PAGE)
    with pytest.raises(AlignmentError, match="page size"):
        space.map(memory, iova=0x10_0800)
    with pytest.raises(ArgumentError, match="no such range"):
        space.map(memory, iova=-PAGE)


def test_limit_that_leaves_no_room(space: AddressSpace, memory: mmap.mmap) -> None:
    for limit in (0, PAGE, 4 * PAGE):
        with pytest.raises(IovaError, match=f"below {limit:#x}"):
            space.map(memory, iova_limit=limit)
    assert space.map(memory, iova_limit=5 * PAGE).iova == PAGE


@pytest.mark.parametrize(("start", "stop"), [(1, 4096), (0, 4095), (8, 4104)])
def test_memory_begins_and_ends_on_pages(space: AddressSpace, memory: mmap.mmap, start: int, stop: int) -> None:
    with pytest.raises(AlignmentError, match=r"multiples of the IOMMU's page size 0x1000; alloc\(\) gives such memory"):
        space.map(memoryview(memory)[start:stop])


def test_memory_that_can_not_be_mapped(space: AddressSpace, memory: mmap.mmap) -> None:
    with pytest.raises(ArgumentError, match="read-only; pass write=False"):
        space.map(memoryview(memory).toreadonly())
    with pytest.raises(ArgumentError, match="not contiguous"):
        space.map(memoryview(memory)[::2])
    with pytest.raises(ArgumentError, match="empty"):
        space.map(memoryview(memory)[:0])
    with pytest.raises(ArgumentError, match=r"list has no buffer to map; .* alloc\(\)"):
        space.map([1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="neither read nor write"):
        space.map(memory, read=False, write=False)
    assert space.mappings == ()
    memory.close()


def test_read_only_memory_can_be_mapped_for_reading(space: AddressSpace, backend: FakeBackend) -> None:
    memory = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)
    with space.map(memory, write=False):
        assert len(backend.mapped) == 1


@pytest.mark.parametrize("size", [0, -1])
def test_alloc_of_nothing(space: AddressSpace, size: int) -> None:
    with pytest.raises(ArgumentError, match="not positive"):
        space.alloc(size)


def test_backing_that_does_not_exist(space: AddressSpace) -> None:
    with pytest.raises(ArgumentError, match="'disk' is not a backing; there are: anonymous, memfd, huge2m, huge1g"):
        space.alloc(PAGE, backing="disk")


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_refused_map_leaves_nothing(space: AddressSpace, backend: FakeBackend, backing: str) -> None:
    def refuse(*args: object) -> None:
        raise VfioIoctlError(12, "VFIO_IOMMU_MAP_DMA")

    backend.before["map"] = refuse
    with nothing_left(), pytest.raises(VfioOSError, match="ENOMEM"):
        space.alloc(PAGE, backing=backing, iova=0x10_0000)
    assert space.mappings == ()
    backend.before.clear()
    with space.alloc(PAGE, iova=0x10_0000):
        assert list(backend.mapped) == [0x10_0000]


def test_without_a_device_there_is_nothing_to_ask(backend: FakeBackend, memory: mmap.mmap) -> None:
    with AddressSpace("type1") as space:
        for refused in (lambda: space.map(memory), lambda: space.alloc(PAGE), lambda: space.iova_ranges):
            with pytest.raises(UnsupportedError, match="no device is attached"):
                refused()
        assert space.unmap_all() == 0


def test_device_that_joins_can_take_ranges_away(space: AddressSpace, backend: FakeBackend) -> None:
    backend.ranges = (IovaRange(0, 0xFFFF),)
    with space.attach(FUNCTION):
        assert space.iova_ranges == (IovaRange(0, 0xFFFF),)
        assert space.alloc(PAGE).iova == 0xF000
    space.detach()


def test_device_that_reaches_less_than_the_kernel_names(space: AddressSpace, backend: FakeBackend) -> None:
    backend.ranges = (IovaRange(0, 0x7FFF), IovaRange(0xA000, 0xFFFF))
    with space.attach(FUNCTION):
        space.confine(IovaRange(0x4000, 0xAFFF))
        assert [*space.iova_ranges] == [IovaRange(0x4000, 0x7FFF), IovaRange(0xA000, 0xAFFF)]
        assert space.alloc(PAGE).iova == 0xA000
        with pytest.raises(IovaError, match=r"outside"):
            space.alloc(PAGE, iova=0x3000)
        backend.ranges = (IovaRange(0, 0x5FFF),)
        with space.attach(FUNCTION):
            assert [*space.iova_ranges] == [IovaRange(0x4000, 0x5FFF)], "also of what is learned later"
            space.confine(IovaRange(0xC000, 0xCFFF))
            assert not space.iova_ranges
            with pytest.raises(IovaError):
                space.alloc(PAGE)
        space.detach()
    space.detach()


def test_use_after_close(backend: FakeBackend, memory: mmap.mmap) -> None:
    space = AddressSpace("type1v2")
    space.attach(FUNCTION).close()
    space.close()
    space.close()
    for refused in (
        lambda: space.map(memory),
        lambda: space.alloc(PAGE),
        lambda: space.attach(FUNCTION),
        lambda: space.unmap_all(),
        lambda: space.iova_ranges,
        lambda: space.page_sizes,
        lambda: space.dma_avail,
        lambda: space.pool(64).take(),
    ):
        with pytest.raises(ClosedError, match="the address space is closed"):
            refused()
    assert space.closed
    assert repr(space) == "<AddressSpace type1v2 0 mappings closed>"
    space.detach()


def test_modes() -> None:
    with pytest.raises(ArgumentError, match=r"'vt-d' is not an IOMMU mode; there are: type1, type1v2"):
        AddressSpace("vt-d")
    with pytest.raises(ArgumentError, match="allow_noiommu=True"):
        AddressSpace("noiommu")
