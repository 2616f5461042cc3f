"""Mappings at their limits: pages of 4 KiB to 1 GiB and what becomes of them, first and last IOVAs, device memory."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import AddressSpace, DmaSlice, IommuMode
from vfio_user._uapi import lib
from vfio_user.addresses import Iova
from vfio_user.drivers.edu import Edu
from vfio_user.errors import IovaError, VfioIoctlError
from vfio_user.kernel.mman import address_of
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
PAGE, HUGE, GIANT = 1 << 12, 2 << 20, 1 << 30
MAP_FIXED = 0x10
TABLES = Path("/sys/kernel/debug/iommu/intel")
CONTAINERS = (IommuMode.TYPE1, IommuMode.TYPE1V2)


@pytest.fixture
def edu(vfio_device: Find, iommu_mode: str) -> Iterator[Edu]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci, Edu(pci) as driver:
        driver.IOVA_LIMIT = 1 << 64  # as the guest's QEMU was told
        yield driver


@pytest.fixture
def space(edu: Edu) -> AddressSpace:
    return edu.pci.address_space


def table_entry(edu: Edu, iova: int) -> tuple[int, ...] | None:
    """Give the entries of the IOMMU's page tables for an IOVA, from the top; none when it is not mapped."""
    text = (TABLES / edu.pci.name / "domain_translation_struct").read_text()
    for line in text.splitlines():
        words = [word for word in line.replace("|", " ").split() if word.startswith("0x")]
        if words and int(words[0], 16) == iova // PAGE:
            return tuple(int(word, 16) for word in words[1:])
    return None


def levels(entries: tuple[int, ...] | None) -> int:
    """Say how many levels an IOVA takes: a page of 4 KiB uses all of them, larger ones fewer."""
    assert entries is not None, "not in the page tables"
    return sum(1 for entry in entries if entry)


# -- sizes of pages


@pytest.mark.parametrize("size", [PAGE, HUGE, GIANT], ids=["4k", "2m", "1g"])
def test_pages_of_memory_are_pages_of_the_iommu(edu: Edu, space: AddressSpace, size: int) -> None:
    backing = {PAGE: "anonymous", HUGE: "huge2m", GIANT: "huge1g"}[size]
    pool = Path("/proc/sys/vm/nr_hugepages")
    pool.write_text("2")
    try:
        with space.alloc(PAGE) as small, space.alloc(size, backing=backing) as buffer:
            assert (buffer.size, buffer.iova % size) == (size, 0)
            buffer[size - 8 :] = b"the last"
            edu.copy_to_device(buffer[size - 8 :])
            edu.copy_from_device(buffer[:8])
            assert bytes(buffer[:8]) == b"the last"
            # The stand-in for type1 (version 1) makes page tables of the smallest pages on purpose.
            fewer = 0 if space.mode is IommuMode.COMPAT_TYPE1 else {PAGE: 0, HUGE: 1, GIANT: 2}[size]
            assert levels(table_entry(edu, buffer.iova)) == levels(table_entry(edu, small.iova)) - fewer
            iova = buffer.iova
        assert table_entry(edu, iova) is None, "gone from the page tables too"
    finally:
        pool.write_text("0")


# -- limits


def test_last_page_that_can_be_mapped(edu: Edu, space: AddressSpace) -> None:
    last = space.iova_ranges[-1].last & -PAGE
    memory = memoryview(mmap.mmap(-1, 2 * PAGE))
    with space.map(memory[:PAGE], iova=last) as mapping:
        assert mapping.iova == last
        memory[:4] = b"last"
        edu.copy_to_device(DmaSlice(memory[:4], mapping.iova))
        edu.copy_from_device(DmaSlice(memory[64:68], Iova(mapping.iova + 64)))
        assert bytes(memory[64:68]) == b"last"
    for iova in (last + PAGE, last):
        with pytest.raises(IovaError):
            space.map(memory, iova=iova)
    space.map(memory[:PAGE], iova=last)
    assert space.unmap_all() == PAGE
    assert space.mappings == ()


def test_ranges_that_reach_beyond_64_bits(space: AddressSpace) -> None:
    memory = memoryview(mmap.mmap(-1, 2 * PAGE))
    last = (1 << 64) - PAGE
    with pytest.raises(IovaError):
        space.map(memory, iova=last)
    # The kernel's own answer, without ours before.
    with pytest.raises(VfioIoctlError) as caught:
        space.backend.map(Iova(last), address_of(memory), 2 * PAGE)
    assert caught.value.errno == errno.EOVERFLOW
    with pytest.raises(VfioIoctlError) as caught:
        space.backend.unmap(last, 2 * PAGE)
    assert caught.value.errno == errno.EOVERFLOW
    assert space.unmap_all() == 0


# -- device memory


@pytest.mark.parametrize("size", [PAGE, None], ids=["a-page", "all"])
def test_device_memory_by_its_address(edu: Edu, space: AddressSpace, size: int | None) -> None:
    bar = edu.pci.bar(0)
    view = bar.view(0, size)
    if space.mode in CONTAINERS:
        with space.map_address(address_of(view), view.nbytes) as mapping:
            assert mapping.size == view.nbytes
        return
    with pytest.raises(VfioIoctlError, match="device memory") as caught:
        space.map_address(address_of(view), view.nbytes)
    assert caught.value.errno == errno.EFAULT


def test_device_memory_at_an_odd_address(edu: Edu, space: AddressSpace) -> None:
    """A mapping that is not congruent with huge pages is made of small ones, and is mapped all the same."""
    info = edu.pci.bar(0).info
    area = memoryview(mmap.mmap(-1, info.size + 2 * HUGE))
    vaddr = (address_of(area) + HUGE) // HUGE * HUGE + PAGE
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
    assert lib.vu_mmap(vaddr, info.size, protection, flags, edu.pci.vdev.fileno(), info.file_offset) == vaddr
    if space.mode in CONTAINERS:
        space.map_address(vaddr, info.size).unmap()
    else:
        with pytest.raises(VfioIoctlError, match="device memory"):
            space.map_address(vaddr, info.size)
    # Ordinary memory in its place again: what maps device memory holds the device.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    assert lib.vu_mmap(vaddr, info.size, protection, private, -1, 0) == vaddr
