"""iommufd by its own requests, on a device whose DMA shows what the page tables hold."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import AddressSpace, DmaSlice, testing
from vfio_user.addresses import Iova, IovaRange
from vfio_user.drivers.edu import Edu
from vfio_user.errors import (
    ClosedError,
    DeadlineError,
    IovaError,
    UnsupportedError,
    VfioIoctlError,
    VfioOSError,
)
from vfio_user.iommu.containers import ContainerBackend
from vfio_user.iommu.iommufd import BoundDevice, Ioas, Iommufd, IommufdBackend, Viommu, VtdInfo, VtdS1
from vfio_user.kernel.mman import address_of
from vfio_user.kernel.uapi import HwInfoType, HwptAllocFlags, ViommuType
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
PAGE = 4096


@pytest.fixture
def iommufd() -> Iterator[Iommufd]:
    with nothing_left(), Iommufd() as iommufd:
        yield iommufd


@pytest.fixture
def ioas(iommufd: Iommufd) -> Ioas:
    return iommufd.alloc_ioas()


@pytest.fixture
def edu(vfio_device: Find) -> Iterator[Edu]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode="iommufd") as pci, Edu(pci) as driver:
        yield driver


def parts(edu: Edu) -> tuple[BoundDevice, Iommufd]:
    backend, bound = edu.pci.address_space.backend, edu.pci.vdev.iommufd
    assert isinstance(backend, IommufdBackend)
    assert bound is not None
    return bound, backend.iommufd


def pages(count: int = 1) -> memoryview:
    return memoryview(mmap.mmap(-1, count * PAGE))


def memfd(data: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, data.ljust(PAGE, b"\0"))
    return fd


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(VfioIoctlError) as caught:
        yield
    assert caught.value.errno == code


# -- address spaces without a device


def test_a_fresh_address_space_takes_everything(ioas: Ioas) -> None:
    found = ioas.ranges()
    assert found.ranges == (IovaRange(0, (1 << 64) - 1),)
    assert found.alignment == 1


def test_map_where_one_likes_and_where_the_kernel_likes(ioas: Ioas) -> None:
    memory = pages(2)
    vaddr = address_of(memory)
    chosen = ioas.map(vaddr, PAGE)
    assert ioas.map(vaddr, 2 * PAGE, 0x10_0000) == 0x10_0000
    with pytest.raises(IovaError, match="IOVA 0x101000, 0x1000 bytes: mapped already"):
        ioas.map(vaddr, PAGE, 0x10_1000)
    with pytest.raises(VfioIoctlError, match="mappings are unmapped whole") as caught:
        ioas.unmap(0x10_0000, PAGE)
    assert caught.value.errno == errno.ENOENT
    assert ioas.unmap(0x10_0000, 2 * PAGE) == 2 * PAGE
    with refused(errno.ENOENT):
        ioas.unmap(0x10_0000, 2 * PAGE)
    assert ioas.unmap(chosen, PAGE) == PAGE
    assert ioas.unmap_all() == 0


def test_unmap_all_counts(ioas: Ioas) -> None:
    memory = pages(8)
    for number in range(8):
        ioas.map(address_of(memory) + number * PAGE, PAGE)
    assert ioas.unmap_all() == 8 * PAGE


def test_ranges_that_reach_beyond_the_end(ioas: Ioas) -> None:
    memory = pages()
    vaddr = address_of(memory)
    for iova, size, code in (
        ((1 << 64) - PAGE, 2 * PAGE, errno.EOVERFLOW),
        ((1 << 64) - 1, PAGE, errno.EOVERFLOW),
        (0, 0, errno.EINVAL),
    ):
        with refused(code):
            ioas.map(vaddr, size, iova)
    last = ioas.map(vaddr, PAGE, (1 << 64) - PAGE)
    assert ioas.unmap(last, PAGE) == PAGE


def test_allowed_iovas_are_where_the_kernel_chooses(ioas: Ioas) -> None:
    memory = pages()
    vaddr = address_of(memory)
    ioas.allow_iovas([IovaRange(0x4000_0000, 0x4000_1FFF), IovaRange(0x8000_0000, 0x8000_0FFF)])
    places = sorted(ioas.map(vaddr, PAGE) for _ in range(3))
    assert places == [0x4000_0000, 0x4000_1000, 0x8000_0000]
    with pytest.raises(IovaError, match="no IOVA is free"):
        ioas.map(vaddr, PAGE)
    assert ioas.map(vaddr, PAGE, 0x1000) == 0x1000, "who names one is not held to the list"
    ioas.allow_iovas([])
    ioas.map(vaddr, PAGE)
    with refused(errno.EINVAL):
        ioas.allow_iovas([IovaRange(0, 0xFFF), IovaRange(0x800, 0x1FFF)])


def test_large_pages_can_be_forbidden(ioas: Ioas) -> None:
    assert ioas.huge_pages
    ioas.huge_pages = False
    assert not ioas.huge_pages
    assert ioas.ranges().alignment == PAGE
    ioas.huge_pages = True
    assert ioas.huge_pages


def test_accounting_is_chosen_before_anything_else(iommufd: Iommufd) -> None:
    assert not iommufd.accounts_by_process
    iommufd.accounts_by_process = True
    assert iommufd.accounts_by_process
    iommufd.alloc_ioas()
    with refused(errno.EBUSY):
        iommufd.accounts_by_process = False


def test_objects_end_once(iommufd: Iommufd, ioas: Ioas) -> None:
    other = iommufd.alloc_ioas()
    assert repr(other) == f"<Ioas {other.id}>"
    with other:
        pass
    other.destroy()
    assert other.destroyed
    with pytest.raises(ClosedError, match="destroyed"):
        other.ranges()
    with pytest.raises(ClosedError):
        ioas.copy(other, 0, PAGE)
    iommufd.close()
    assert ioas.destroyed
    ioas.destroy()
    with pytest.raises(ClosedError, match="/dev/iommu is closed"):
        iommufd.alloc_ioas()


def test_only_files_change_hands(iommufd: Iommufd, ioas: Ioas) -> None:
    fd = memfd(b"mine")
    try:
        ioas.map_file(fd, 0, PAGE)
        iommufd.change_process()
        ioas.map(address_of(pages()), PAGE)
        with pytest.raises(VfioIoctlError, match="map memory files with map_file"):
            iommufd.change_process()
    finally:
        os.close(fd)


def test_fault_queue_waits_for_faults(iommufd: Iommufd) -> None:
    with iommufd.alloc_fault_queue() as queue:
        with pytest.raises(DeadlineError):
            queue.read(0.01)
        with pytest.raises(OSError, match="answer page faults"):
            queue.respond([7])
    with pytest.raises(ClosedError):
        queue.fileno()


# -- with a device


def test_what_the_iommu_is(edu: Edu) -> None:
    bound, iommufd = parts(edu)
    info = iommufd.hw_info(bound.device_id)
    assert info.kind == HwInfoType.INTEL_VTD
    assert isinstance(info.data, VtdInfo)
    width = (info.data.capability >> 16 & 0x3F) + 1
    assert edu.pci.address_space.iova_ranges[-1].last == (1 << width) - 1
    assert info.max_pasid_log2 == 0
    assert iommufd.hw_info(bound.device_id, HwInfoType.INTEL_VTD).data == info.data
    with pytest.raises(UnsupportedError):
        iommufd.hw_info(bound.device_id, HwInfoType.ARM_SMMUV3)
    with refused(errno.ENOENT):
        iommufd.hw_info(0xFFFF)


def test_device_takes_ranges_away(edu: Edu) -> None:
    _, iommufd = parts(edu)
    backend = edu.pci.address_space.backend
    assert isinstance(backend, IommufdBackend)
    found = backend.ioas.ranges()
    assert found.alignment == PAGE
    assert not any(each.contains(0xFEE0_0000, 1) for each in found.ranges), "the MSI window is no memory"
    memory = pages()
    vaddr = address_of(memory)
    with refused(errno.EINVAL):
        backend.ioas.map(vaddr, PAGE, 0xFEE0_0000)
    # What is in the way of the device keeps it from being attached.
    with iommufd.alloc_ioas() as ioas:
        ioas.map(vaddr, PAGE, 0xFEE0_0000)
        bound, _ = parts(edu)
        with pytest.raises(VfioIoctlError, match="an IOVA that this device can't have") as caught:
            bound.attach_pt(ioas)
        assert caught.value.errno == errno.EADDRINUSE


def test_device_goes_over_to_another_address_space_and_back(edu: Edu) -> None:
    bound, iommufd = parts(edu)
    backend = edu.pci.address_space.backend
    assert isinstance(backend, IommufdBackend)
    first, second = pages(), pages()
    first[:5], second[:5] = b"first", b"other"
    iova, out = 0x10_0000, 0x20_0000
    result = pages()
    with iommufd.alloc_ioas() as ioas:
        for space, memory in ((backend.ioas, first), (ioas, second)):
            space.map(address_of(memory), PAGE, iova)
            space.map(address_of(result), PAGE, out)
        seen = []
        for target in (backend.ioas, ioas, backend.ioas):
            bound.attach_pt(target)
            edu.copy_to_device(DmaSlice(first[:5], Iova(iova)))
            edu.copy_from_device(DmaSlice(result[:5], Iova(out)))
            seen.append(bytes(result[:5]))
        assert seen == [b"first", b"other", b"first"]
        backend.ioas.unmap(iova, PAGE)
        backend.ioas.unmap(out, PAGE)


def test_detached_device_reaches_nothing(edu: Edu) -> None:
    bound, _ = parts(edu)
    backend = edu.pci.address_space.backend
    assert isinstance(backend, IommufdBackend)
    with edu.alloc() as buffer:
        buffer[:4] = b"safe"
        edu.copy_to_device(buffer[:4])
        buffer[:4] = b"kept"
        bound.detach_pt()
        bound.detach_pt()
        edu.copy_from_device(buffer[:4])
        assert bytes(buffer[:4]) == b"kept"
        bound.attach_pt(backend.ioas)
        edu.copy_from_device(buffer[:4])
        assert bytes(buffer[:4]) == b"safe"


def test_page_tables_of_their_own(edu: Edu) -> None:
    bound, iommufd = parts(edu)
    backend = edu.pci.address_space.backend
    assert isinstance(backend, IommufdBackend)
    with edu.alloc() as buffer, backend.ioas.alloc_hwpt(bound.device_id) as hwpt:
        assert bound.attach_pt(hwpt) == hwpt.id
        buffer[:4] = b"hwpt"
        edu.copy_to_device(buffer[:4])
        edu.copy_from_device(buffer[64:68])
        assert bytes(buffer[64:68]) == b"hwpt"
        with pytest.raises(VfioIoctlError, match="a device is attached to it"):
            hwpt.destroy()
        assert bound.attach_pt(backend.ioas) != hwpt.id
    with pytest.raises(VfioIoctlError) as caught, iommufd.alloc_ioas() as ioas:
        ioas.alloc_hwpt(0xFFFF)
    assert caught.value.errno == errno.ENOENT


def test_what_this_iommu_lacks_is_named(edu: Edu) -> None:
    bound, _ = parts(edu)
    backend = edu.pci.address_space.backend
    assert isinstance(backend, IommufdBackend)
    ioas = backend.ioas
    with pytest.raises(UnsupportedError, match=r"IOMMU_HWPT_ALLOC: the device's IOMMU can't do .*DIRTY_TRACKING"):
        ioas.alloc_hwpt(bound.device_id, flags=HwptAllocFlags.DIRTY_TRACKING)
    with pytest.raises(UnsupportedError, match="NEST_PARENT"):
        ioas.alloc_hwpt(bound.device_id, flags=HwptAllocFlags.NEST_PARENT)
    with pytest.raises(VfioIoctlError, match=r"has no PASID 1"):
        bound.attach_pt(ioas, pasid=1)
    bound.detach_pt(pasid=1)
    with ioas.alloc_hwpt(bound.device_id) as hwpt:
        with pytest.raises(UnsupportedError, match=r"without HwptAllocFlags.DIRTY_TRACKING"):
            hwpt.set_dirty_tracking(True)
        with pytest.raises(UnsupportedError):
            hwpt.dirty_bitmap(0, PAGE)
        with refused(errno.EINVAL):
            hwpt.alloc_nested(bound.device_id, VtdS1(0, 48))
        with pytest.raises((UnsupportedError, VfioIoctlError)):
            Viommu.alloc(hwpt, bound.device_id, ViommuType.ARM_SMMUV3)


def test_file_is_mapped_without_an_address(edu: Edu) -> None:
    fd = memfd(b"from a file")
    space = edu.pci.address_space
    try:
        with space.map_file(fd, PAGE, iova_limit=edu.IOVA_LIMIT) as mapping:
            assert mapping.vaddr is None
            view = pages()
            edu.copy_to_device(DmaSlice(view[:11], mapping.iova))
            edu.copy_from_device(DmaSlice(view[:11], Iova(mapping.iova + 100)))
            assert os.pread(fd, 11, 100) == b"from a file"
    finally:
        os.close(fd)


def test_copies_pin_once_and_reach_the_same(edu: Edu) -> None:
    bound, iommufd = parts(edu)
    backend = edu.pci.address_space.backend
    assert isinstance(backend, IommufdBackend)
    with edu.alloc() as buffer, iommufd.alloc_ioas() as ioas:
        iova = ioas.copy(backend.ioas, buffer.iova, PAGE, 0x30_0000)
        assert iova == 0x30_0000
        with pytest.raises(IovaError, match="nothing is mapped at"):
            ioas.copy(backend.ioas, 0x7000_0000, PAGE)
        with pytest.raises(IovaError, match="mapped already"):
            ioas.copy(backend.ioas, buffer.iova, PAGE, 0x30_0000)
        buffer[:4] = b"copy"
        bound.attach_pt(ioas)
        edu.copy_to_device(DmaSlice(buffer.view[:4], iova))
        edu.copy_from_device(DmaSlice(buffer.view[32:36], Iova(iova + 32)))
        assert bytes(buffer[32:36]) == b"copy"
        bound.attach_pt(backend.ioas)


# -- the stand-in for a container


def test_container_has_an_address_space_that_can_be_named() -> None:
    device = testing.device("edu")
    with nothing_left(), AddressSpace("compat-type1v2") as space:
        backend = space.backend
        assert isinstance(backend, ContainerBackend)
        iommufd = Iommufd(backend.container.fd)
        assert iommufd.vfio_ioas is None
        mine = iommufd.alloc_ioas()
        iommufd.vfio_ioas = mine
        with vfio_user.open(device.address, address_space=space) as pci, Edu(pci) as edu, edu.alloc() as buffer:
            assert iommufd.vfio_ioas is not None
            assert iommufd.vfio_ioas.id == mine.id
            with pytest.raises(IovaError, match="mapped already"):
                mine.map(address_of(pages()), PAGE, buffer.iova)
            fd = memfd(b"both worlds")
            iova = mine.map_file(fd, 0, PAGE, 0x40_0000)
            edu.copy_to_device(DmaSlice(pages()[:11], iova))
            edu.copy_from_device(buffer[:11])
            assert bytes(buffer[:11]) == b"both worlds"
            os.close(fd)
            mine.unmap(iova, PAGE)
            iommufd.vfio_ioas = None
            assert iommufd.vfio_ioas is None
            iommufd.vfio_ioas = mine


def test_missing_node_is_explained() -> None:
    os.rename("/dev/iommu", "/dev/hidden")
    try:
        with pytest.raises(OSError, match="no iommufd"):
            Iommufd()
        for mode in ("iommufd", "compat-type1"):
            with pytest.raises(OSError, match="modprobe iommufd"):
                AddressSpace(mode)
        with AddressSpace() as space:
            assert space.mode.value == "type1v2"
    finally:
        os.rename("/dev/hidden", "/dev/iommu")


# -- device memory


def test_file_of_device_memory_is_revoked_by_a_reset(edu: Edu, vfio_device: Find) -> None:
    bound, _ = parts(edu)
    backend = edu.pci.address_space.backend
    assert isinstance(backend, IommufdBackend)
    with vfio_user.open(vfio_device("ivshmem").address, address_space=edu.pci.address_space) as memory:
        bar = memory.bar(2)
        with pytest.raises(VfioIoctlError, match="device memory") as caught:
            edu.pci.address_space.map(bar.view(0, PAGE))
        assert caught.value.errno == errno.EFAULT
        with bar.export_dma_buf([(0, PAGE)]) as file, edu.alloc() as buffer:
            iova = backend.ioas.map_file(file.fileno(), 0, PAGE, 0x40_0000)
            for word in (b"first", b"again"):
                buffer[:5] = word
                edu.copy_to_device(buffer[:5])
                edu.copy_from_device(DmaSlice(buffer.view[:5], iova))
                assert bar.pread(0, 5) == word
                memory.reset()
                bar.pwrite(0, b"-----")
                edu.copy_from_device(DmaSlice(buffer.view[:5], iova))
                assert bar.pread(0, 5) == b"-----", "the kernel unmapped it"
                assert backend.ioas.unmap(iova, PAGE) == PAGE
                assert backend.ioas.map_file(file.fileno(), 0, PAGE, iova) == iova
            backend.ioas.unmap(iova, PAGE)
        assert bound.device_id != 0


def test_group_and_device_node_exclude_each_other(vfio_device: Find, iommu_mode: str) -> None:
    address = vfio_device("edu").address
    with vfio_user.open(address, mode=iommu_mode), nothing_left():
        other = AddressSpace("type1v2" if iommu_mode == "iommufd" else "iommufd")
        with other, pytest.raises(VfioOSError, match=r"open already|open through its group") as caught:
            other.attach(vfio_user.pci_function(address))
        assert caught.value.errno == errno.EBUSY
