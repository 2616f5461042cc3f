"""Many mappings at once on real IOMMUs: what the device reached is out of its reach, and the kernel's count agrees."""

from __future__ import annotations

import mmap
import time
from array import array
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user.drivers.edu import Edu
from vfio_user.errors import ArgumentError, IovaError, VfioError
from vfio_user.iommu import AddressSpace, UnmapBatch
from vfio_user.kernel.mman import address_of
from vfio_user.testing import GuestDevice, devices

Find = Callable[[str], GuestDevice]
PAGE = 4096


@pytest.fixture
def edu(vfio_device: Find, iommu_mode: str) -> Iterator[Edu]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci, Edu(pci) as driver:
        yield driver


def reaches(edu: Edu, part: vfio_user.DmaSlice) -> bool:
    """Tell whether the device can write there: what it meets instead is an IOMMU fault, which it ignores."""
    with edu.alloc() as source:
        source[:4] = b"seen"
        edu.copy_to_device(source[:4])
    part.view[:4] = bytes(4)
    edu.copy_from_device(part[:4])
    return bytes(part.view[:4]) == b"seen"


def scattered(count: int) -> tuple[mmap.mmap, array[int]]:
    """Memory of which every other page is wanted, so that no two abut."""
    memory = mmap.mmap(-1, 2 * count * PAGE)
    base = address_of(memoryview(memory))
    return memory, array("Q", range(base, base + 2 * count * PAGE, 2 * PAGE))


def test_many_are_unmapped_at_once(edu: Edu) -> None:
    space = edu.pci.address_space
    before = space.dma_avail
    stays = edu.alloc()
    buffers = [edu.alloc() for _ in range(200)]
    assert reaches(edu, buffers[100])
    assert space.unmap_many(buffers) == 200 * PAGE
    assert all(buffer.closed for buffer in buffers)
    assert reaches(edu, stays)
    for buffer in buffers[::50]:
        assert not reaches(edu, buffer)
    stays.close()
    assert space.dma_avail == before
    del buffers, buffer


def test_every_other_one(edu: Edu) -> None:
    space = edu.pci.address_space
    buffers = [edu.alloc() for _ in range(64)]
    assert space.unmap_many(buffers[::2]) == 32 * PAGE
    assert [buffer.closed for buffer in buffers] == [True, False] * 32
    assert reaches(edu, buffers[1])
    assert not reaches(edu, buffers[2])
    again = [edu.alloc() for _ in range(32)]
    assert {buffer.iova for buffer in again} == {buffer.iova for buffer in buffers[::2]}
    assert space.unmap_many([*buffers, *again]) == 64 * PAGE
    assert space.unmap_all() == 0
    del buffers, again


def test_scattered_memory_is_one_range(edu: Edu) -> None:
    space = edu.pci.address_space
    memory, vaddrs = scattered(100)
    before = space.dma_avail
    with space.map_addresses(vaddrs, PAGE, iova_limit=edu.IOVA_LIMIT, keepalive=memory) as mapping:
        assert mapping.size == 100 * PAGE
        if before is not None:
            assert space.dma_avail == before - 100
        for number in (0, 57, 99):
            with edu.alloc() as source:
                source[:4] = number.to_bytes(4, "little")
                edu.copy_to_device(source[:4])
            page = memoryview(memory)[2 * number * PAGE :][:PAGE]
            edu.copy_from_device(vfio_user.DmaSlice(page, vfio_user.Iova(mapping.iova + number * PAGE))[:4])
            assert int.from_bytes(page[:4], "little") == number
            page.release()
    assert space.dma_avail == before


def test_refusal_half_way_leaves_nothing(edu: Edu) -> None:
    space = edu.pci.address_space
    before = space.dma_avail, space.mappings
    memory, vaddrs = scattered(20)
    vaddrs[13] = 0x1000  # nothing is mapped there
    with nothing_left(), pytest.raises(VfioError, match=r"EFAULT|EINVAL"):
        space.map_addresses(vaddrs, PAGE, keepalive=memory)
    assert (space.dma_avail, space.mappings) == before
    with space.alloc(PAGE, iova=0x40_0000), pytest.raises(IovaError, match="mapped already"):
        space.map_addresses(vaddrs[:4], PAGE, iova=0x3F_E000)
    space.map_addresses(vaddrs[:4], PAGE, iova=0x3F_E000).unmap()


def test_more_than_the_kernel_flushes_at_a_time(edu: Edu) -> None:
    """type1 unmaps 512 at the most between two flushes of the IOMMU's cache."""
    space = edu.pci.address_space
    memory, vaddrs = scattered(1300)
    mappings = [space.map_address(vaddr, PAGE, keepalive=memory) for vaddr in vaddrs]
    assert space.unmap_many(mappings[400:1000]) == 600 * PAGE
    assert space.unmap_many(mappings) == 700 * PAGE
    mappings = [space.map_address(vaddr, PAGE, keepalive=memory) for vaddr in vaddrs[:600]]
    with edu.alloc() as stays:
        assert space.unmap_many(mappings) == 600 * PAGE
        assert reaches(edu, stays)


def test_batch_over_two_spaces(edu: Edu, iommu_mode: str) -> None:
    second = next(each.address for each in devices("edu") if each.address != str(edu.pci.address))
    with vfio_user.open(second, mode=iommu_mode) as pci, Edu(pci) as other:
        mixed = [owner.alloc() for _ in range(10) for owner in (edu, other)]
        with pytest.raises(ArgumentError, match="another address space"):
            edu.pci.address_space.unmap_many(mixed)
        with UnmapBatch() as batch:
            batch.extend(mixed)
        assert all(buffer.closed for buffer in mixed)
        assert len(batch) == 0
        del mixed


def test_close_with_many_mappings(vfio_device: Find, iommu_mode: str) -> None:
    memory, vaddrs = scattered(1000)
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci:
        space: AddressSpace = pci.address_space
        mappings = [space.map_address(vaddr, PAGE, keepalive=memory) for vaddr in vaddrs]
    assert all(mapping.ended for mapping in mappings)


def test_deferred_unmaps_are_within_reach_until_they_are_done(edu: Edu) -> None:
    space = edu.pci.address_space
    with space.deferred(limit=8, max_delay=None) as later:
        buffers = [edu.alloc() for _ in range(8)]
        for buffer in buffers[:7]:
            later.unmap(buffer)
        assert reaches(edu, buffers[0])
        assert later.num_pending == 7
        with edu.alloc() as another:
            assert another.iova not in {buffer.iova for buffer in buffers}
        later.unmap(buffers[7])
        assert later.num_pending == 0
        assert not reaches(edu, buffers[0])
        del buffers, buffer


def test_deferred_unmaps_are_done_in_time(edu: Edu) -> None:
    space = edu.pci.address_space
    with space.deferred(max_delay=0.01) as later:
        buffer = edu.alloc()
        later.unmap(buffer)
        deadline = time.monotonic() + 20
        while not buffer.closed:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not reaches(edu, buffer)
        del buffer


def test_pool_gives_its_chunks_back_at_once(edu: Edu) -> None:
    space = edu.pci.address_space
    before = space.dma_avail
    with space.pool(PAGE, chunk_size=64 * PAGE) as pool:
        pool.take_many(640)
        assert len(space.mappings) >= 10
    assert space.dma_avail == before
