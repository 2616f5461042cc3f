"""A platform device with DMA and an edge interrupt: virtio's entropy device behind the MMIO transport."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import vfio_user
from tests.buses.conftest import Way
from tests.guest.leaks import nothing_left
from vfio_user import DmaSlice, PlatformDevice
from vfio_user.drivers.virtio.entropy import MmioEntropy
from vfio_user.errors import BoundsError, UnsupportedError
from vfio_user.iommu import pagemap
from vfio_user.kernel.mman import address_of
from vfio_user.kernel.uapi import IrqFlags

Place = Callable[[str], str]
PAGE = mmap.PAGESIZE


@contextmanager
def memory_for(platform: PlatformDevice) -> Iterator[DmaSlice | None]:
    """Give memory at an IOVA that is its physical address: QEMU's SMMU does not translate for such a device."""
    if not platform.address_space.mode.translates:
        yield None
        return
    view = memoryview(mmap.mmap(-1, PAGE))
    view[:] = bytes(PAGE)
    vaddr = address_of(view)
    physical = pagemap.lock_and_find(vaddr, PAGE)
    mapping = platform.address_space.map_address(vaddr, PAGE, iova=physical, keepalive=view)
    try:
        yield DmaSlice(view, mapping.iova)
    finally:
        mapping.unmap()
        pagemap.unlock(vaddr, PAGE)


def test_what_it_is(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open_platform(place("virtio-rng-mmio"), **way) as platform:
        (region,) = platform.regions
        assert (region.size, region.mmio) == (0x200, None), "smaller than a page, so the kernel does not map it"
        assert region.read32(0) == 0x74726976
        assert platform.irq().flags == IrqFlags.EVENTFD
        with pytest.raises(UnsupportedError, match=r"can't mask"):
            platform.irq().unmask()


def test_it_fills_memory_and_interrupts(place: Place, way: Way) -> None:
    with vfio_user.open_platform(place("virtio-rng-mmio"), **way) as platform, memory_for(platform) as memory:
        with MmioEntropy(platform, memory) as entropy:
            first, second = entropy.read(64), entropy.read(MmioEntropy.LIMIT)
            assert len(first) == 64
            assert len(second) == MmioEntropy.LIMIT
            assert len(set(second)) > 200
            assert first != second[:64]
            with pytest.raises(BoundsError):
                entropy.read(MmioEntropy.LIMIT + 1)
        with MmioEntropy(platform, memory) as entropy:
            assert len(entropy.read(16)) == 16, "and again after its driver was removed"
