"""DMA on real IOMMUs: what the device writes is what the memory holds."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import IommuMode
from vfio_user.drivers.edu import Edu
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, ClosedError, IovaError, VfioOSError
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]


@pytest.fixture
def edu(vfio_device: Find, iommu_mode: str) -> Iterator[Edu]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci, Edu(pci) as driver:
        yield driver


def test_round_trip(edu: Edu) -> None:
    with edu.alloc() as there, edu.alloc() as back:
        there[:4080] = bytes(range(255)) * 16
        edu.copy_to_device(there[:4080])
        assert bytes(back) == bytes(4096)
        edu.copy_from_device(back[:4080])
        assert bytes(back) == bytes(range(255)) * 16 + bytes(16)


def test_slices_know_their_iova(edu: Edu) -> None:
    with edu.alloc(8192) as buffer:
        part = buffer[100:200][10:20]
        assert part.iova == buffer.iova + 110
        part[:] = b"0123456789"
        edu.copy_to_device(part)
        edu.copy_from_device(buffer[4096:4106])
        assert bytes(buffer[4096:4106]) == b"0123456789"


def test_numpy_sees_what_the_device_wrote(edu: Edu) -> None:
    with edu.alloc() as buffer:
        values = buffer.array("<u4")
        values[:] = numpy.arange(1024)
        edu.copy_to_device(buffer[:4000])
        values[:] = 0
        edu.copy_from_device(buffer[:4000])
        assert (values[:1000] == numpy.arange(1000)).all()
        assert numpy.shares_memory(values, numpy.frombuffer(memoryview(buffer), "u1"))
        del values


def test_memory_of_the_caller(edu: Edu) -> None:
    memory = mmap.mmap(-1, 4096)
    space = edu.pci.address_space
    with space.map(memory, iova_limit=edu.IOVA_LIMIT) as mapping, edu.alloc() as source:
        source.view[:5] = b"hello"
        edu.copy_to_device(source[:5])
        from vfio_user import DmaSlice

        edu.copy_from_device(DmaSlice(memoryview(memory)[:5], mapping.iova))
        assert memory[:5] == b"hello"


@pytest.mark.parametrize("backing", ["anonymous", "memfd", "huge2m"])
def test_backings(edu: Edu, backing: str) -> None:
    pool = Path("/proc/sys/vm/nr_hugepages")
    if backing == "huge2m":
        pool.write_text("8")
    try:
        with edu.pci.dma_alloc(4096, iova_limit=edu.IOVA_LIMIT, backing=backing) as buffer:
            assert buffer.size == (2 << 20 if backing == "huge2m" else 4096)
            buffer.view[:4] = b"abcd"
            edu.copy_to_device(buffer[:4])
            edu.copy_from_device(buffer[1024:1028])
            assert bytes(buffer[1024:1028]) == b"abcd"
            if backing != "anonymous":
                assert os.pread(buffer.fileno(), 4, 1024) == b"abcd"
    finally:
        pool.write_text("0")


def test_no_huge_pages_is_explained(edu: Edu) -> None:
    Path("/proc/sys/vm/nr_hugepages").write_text("0")
    for backing, words in (("huge2m", "vm.nr_hugepages=1"), ("huge1g", "hugepagesz=1G")):
        with pytest.raises(VfioOSError, match=words):
            edu.pci.dma_alloc(4096, backing=backing)


def test_usable_ranges_are_honoured(edu: Edu) -> None:
    space = edu.pci.address_space
    assert not any(each.contains(0xFEE00000, 1) for each in space.iova_ranges), "the MSI window is no memory"
    with pytest.raises(IovaError, match=r"outside of what this IOMMU translates"):
        space.alloc(4096, iova=0xFEE00000)
    with pytest.raises(IovaError):
        space.alloc(4096, iova=space.iova_ranges[-1].last + 1)
    with space.alloc(4096, iova=0x100000) as buffer, pytest.raises(IovaError, match=r"mapped already"):
        space.alloc(4096, iova=buffer.iova)
    with space.alloc(4096, iova=0x100000) as buffer:
        assert buffer.iova == 0x100000


def test_limit_is_honoured(edu: Edu) -> None:
    space = edu.pci.address_space
    with space.alloc(1 << 20, iova_limit=1 << 28) as low, space.alloc(1 << 20) as free:
        assert low.iova + low.size <= 1 << 28
        assert free.iova >= 1 << 28
        with pytest.raises(BoundsError, match=r"28 address bits"):
            edu.copy_to_device(free[:16])
    with pytest.raises(IovaError, match=r"no free IOVA range"):
        space.alloc(1 << 20, iova_limit=1 << 16)


def test_wrong_maps_are_named_and_leave_nothing(edu: Edu) -> None:
    space = edu.pci.address_space
    before = space.mappings
    with nothing_left():
        with pytest.raises(AlignmentError, match=r"page size"):
            space.map(bytearray(100))
        with pytest.raises(AlignmentError):
            space.alloc(4096, iova=0x1001)
        with pytest.raises(ArgumentError, match=r"read-only"):
            space.map(memoryview(mmap.mmap(-1, 4096, prot=mmap.PROT_READ)))
        with pytest.raises(ArgumentError, match=r"no buffer"):
            space.map(17)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match=r"not a backing"):
            space.alloc(4096, backing="floppy")
        for size in (0, -1):
            with pytest.raises(ArgumentError):
                space.alloc(size)
        with pytest.raises(VfioOSError, match=r"EFAULT|EINVAL"):
            space.map_address(0x1000, 4096)
    assert space.mappings == before


def test_unmapped_memory_stays_readable(edu: Edu) -> None:
    buffer = edu.alloc()
    view = buffer.view
    view[:3] = b"abc"
    buffer.close()
    buffer.close()
    assert bytes(view[:3]) == b"abc"
    assert buffer.closed
    del view


def test_unmap_all(edu: Edu) -> None:
    space = edu.pci.address_space
    buffers = [edu.alloc() for _ in range(20)]
    assert space.unmap_all() >= 20 * 4096
    assert space.mappings == ()
    for buffer in buffers:
        assert buffer.closed
        buffer.close()
    assert space.unmap_all() == 0
    test_round_trip(edu)


def test_pool_carves_few_mappings(edu: Edu) -> None:
    space = edu.pci.address_space
    before = len(space.mappings)
    with space.pool(64, iova_limit=edu.IOVA_LIMIT) as pool:
        taken = pool.take_many(1000)
        assert len({each.iova for each in taken}) == 1000
        assert len(space.mappings) == before + 1
        taken[7][:4] = b"pool"
        edu.copy_to_device(taken[7][:4])
        edu.copy_from_device(taken[8][:4])
        assert bytes(taken[8][:4]) == b"pool"
        pool.give_many(taken)
        with pytest.raises(ArgumentError, match=r"not out"):
            pool.give(taken[0])
    assert len(space.mappings) == before
    with pytest.raises(ClosedError):
        pool.take()


def test_budget_of_mappings_is_watched(edu: Edu) -> None:
    space = edu.pci.address_space
    before = space.dma_avail
    if space.mode not in (IommuMode.TYPE1, IommuMode.TYPE1V2):
        assert before is None, "iommufd does not count"
        return
    assert before is not None
    with edu.alloc():
        assert space.dma_avail == before - 1
    assert space.dma_avail == before
