"""In a guest without an IOMMU whose kernel allows VFIO nevertheless: devices use physical addresses.

``vfio-user guest --kernel feature --iommu none --append vfio.enable_unsafe_noiommu_mode=1
--device edu,dma_mask=0xffffffffffffffff --device nvme``
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import AddressSpace, DmaSlice, IommuMode, testing
from vfio_user.drivers.edu import Edu
from vfio_user.drivers.nvme import NvmeController
from vfio_user.errors import ArgumentError, IovaError, UnsupportedError
from vfio_user.iommu import pagemap
from vfio_user.kernel.mman import address_of

MODES = ("noiommu", "noiommu-iommufd")
PAGE = 4096


@pytest.fixture(params=MODES)
def edu(request: pytest.FixtureRequest) -> Iterator[Edu]:
    address = testing.device("edu").address
    with (
        nothing_left(),
        vfio_user.open(address, mode=request.param, allow_noiommu=True) as pci,
        Edu(pci) as driver,
    ):
        driver.IOVA_LIMIT = 1 << 64  # as the guest's QEMU was told
        yield driver


def test_nobody_gets_here_who_does_not_ask() -> None:
    address = testing.device("edu").address
    function = vfio_user.pci_function(address)
    assert function.noiommu
    with nothing_left():
        for mode in ("auto", *MODES):
            with pytest.raises((UnsupportedError, ArgumentError), match=r"nothing protects.*allow_noiommu=True"):
                vfio_user.open(address, mode=mode)
        with vfio_user.open(address, allow_noiommu=True) as pci:
            assert pci.address_space.mode is IommuMode.NOIOMMU_IOMMUFD


def test_modes_with_an_iommu_are_refused() -> None:
    address = testing.device("edu").address
    with nothing_left():
        for mode in ("type1v2", "compat-type1v2", "iommufd"):
            with pytest.raises(UnsupportedError, match=r"has no IOMMU, and mode .* needs one"):
                vfio_user.open(address, mode=mode, allow_noiommu=True)


def test_device_uses_the_physical_address(edu: Edu) -> None:
    with edu.alloc() as there, edu.alloc() as back:
        assert there.iova == pagemap.lock_and_find(address_of(there.view), PAGE)
        there[:6] = b"direct"
        edu.copy_to_device(there[:6])
        edu.copy_from_device(back[100:106])
        assert bytes(back[100:106]) == b"direct"
        pagemap.unlock(address_of(there.view), PAGE)


@pytest.mark.parametrize("size", [3 * PAGE, 64 << 10, 2 << 20])
def test_more_than_a_page_is_contiguous(edu: Edu, size: int) -> None:
    with edu.alloc(size) as buffer:
        for offset in (0, PAGE - 4, size - 8):
            part = buffer[offset : offset + 8]
            part[:] = offset.to_bytes(8, "little")
            edu.copy_to_device(part)
            part[:] = bytes(8)
            edu.copy_from_device(part)
            assert int.from_bytes(bytes(part), "little") == offset


def test_huge_pages_of_the_pool(edu: Edu) -> None:
    pool = Path("/proc/sys/vm/nr_hugepages")
    pool.write_text("2")
    try:
        with edu.pci.dma_alloc(PAGE, backing="huge2m") as buffer:
            assert buffer.iova % (2 << 20) == 0
            buffer[-4:] = b"tail"
            edu.copy_to_device(buffer[-4:])
            edu.copy_from_device(buffer[:4])
            assert bytes(buffer[:4]) == b"tail"
    finally:
        pool.write_text("0")


def test_what_is_not_contiguous_is_refused(edu: Edu) -> None:
    space = edu.pci.address_space
    memory = mmap.mmap(-1, 16 * PAGE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    view = memoryview(memory)
    for page in (3, 11, 0, 7, 15, 1, 9, 5, 13, 2, 10, 6, 14, 4, 12, 8):
        view[page * PAGE] = 1  # touched in this order, so that they are not in a row
    with nothing_left(), pytest.raises(IovaError, match=r"not contiguous.*alloc\(\) gives such memory"):
        space.map(view)
    with space.map(view[:PAGE]) as mapping:
        part = DmaSlice(view[:16], mapping.iova)
        edu.copy_from_device(part)
    assert space.mappings == ()


def test_addresses_can_not_be_chosen(edu: Edu) -> None:
    space = edu.pci.address_space
    assert space.iova_ranges == ()
    with pytest.raises(ArgumentError, match=r"can't be chosen"):
        space.alloc(PAGE, iova=0x10_0000)
    with nothing_left(), pytest.raises(IovaError, match="reaches beyond the limit"):
        space.alloc(PAGE, iova_limit=PAGE)


def test_unmap_all(edu: Edu) -> None:
    space = edu.pci.address_space
    buffers = [edu.alloc() for _ in range(10)]
    assert len({buffer.iova for buffer in buffers}) == 10
    assert space.unmap_all() == 10 * PAGE
    assert all(buffer.closed for buffer in buffers)


def test_factorial_by_interrupt(edu: Edu) -> None:
    assert edu.factorial(7) == 5040


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_driver(mode: str) -> None:
    address = testing.device("nvme").address
    with (
        nothing_left(),
        AddressSpace(mode, allow_noiommu=True) as space,
        vfio_user.open(address, address_space=space) as pci,
        NvmeController(pci) as nvme,
    ):
        (namespace,) = nvme.namespaces
        data = bytes(range(256)) * 64
        namespace.write(0, data)
        assert bytes(namespace.read(0, len(data) // namespace.block_size)) == data
