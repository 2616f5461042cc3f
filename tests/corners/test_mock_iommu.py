"""What no emulated IOMMU has, on the kernel's mock: dirty tracking, nesting, page faults, virtual IOMMUs."""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.corners import mock_iommu as mock
from tests.corners.mock_iommu import MockData, MockDevice, MockDeviceInvalidate, MockInvalidate
from tests.guest.leaks import nothing_left
from vfio_user.errors import DeadlineError, UnsupportedError, VfioIoctlError
from vfio_user.iommu.iommufd import Hwpt, Ioas, Iommufd, Viommu
from vfio_user.iommu.iommufd.dirty import HwptDirtyLog
from vfio_user.kernel.mman import address_of
from vfio_user.kernel.uapi import HwptAllocFlags, PageFaultFlags, PageFaultPermission, PageResponse, VeventFlags

PAGE = 4096
SIZE = 200 * PAGE
IOVA = mock.APERTURE


@pytest.fixture
def ioas() -> Iterator[Ioas]:
    with nothing_left(), Iommufd() as iommufd:
        ioas = iommufd.alloc_ioas()
        ioas.huge_pages = False  # an entry of the page tables, which is dirty as a whole, is a page
        yield ioas


@pytest.fixture
def device(ioas: Ioas) -> MockDevice:
    return MockDevice(ioas)


@pytest.fixture
def parent(ioas: Ioas, device: MockDevice) -> Hwpt:
    return ioas.alloc_hwpt(device.device_id, flags=HwptAllocFlags.NEST_PARENT)


@pytest.fixture
def memory(ioas: Ioas) -> memoryview:
    memory = memoryview(mmap.mmap(-1, SIZE))
    assert ioas.map(address_of(memory), SIZE, IOVA) == IOVA
    return memory


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(VfioIoctlError) as caught:
        yield
    assert caught.value.errno == code


def test_what_it_is(ioas: Ioas, device: MockDevice) -> None:
    info = ioas.iommufd.hw_info(device.device_id)
    assert (info.kind, info.data) == (mock.HW_INFO, None)
    assert struct.unpack("=II", info.raw) == (0, mock.REGISTER)


# -- dirty tracking


def test_pages_that_are_written_to(ioas: Ioas, device: MockDevice, memory: memoryview) -> None:
    pages = [0, 1, 63, 64, 130, 199]
    table = ioas.alloc_hwpt(device.device_id, flags=HwptAllocFlags.DIRTY_TRACKING)
    device.attach_pt(table)
    with refused(errno.EINVAL):
        mock.make_dirty(table, IOVA, SIZE, pages, PAGE)  # not before it is switched on
    table.set_dirty_tracking(True)
    assert table.dirty_bitmap(IOVA, SIZE).count == 0
    assert mock.make_dirty(table, IOVA, SIZE, pages, PAGE) == len(pages)
    for clear in (False, True):
        found = table.dirty_bitmap(IOVA, SIZE, clear=clear)
        assert [(iova - IOVA) // PAGE for iova in found] == pages
        assert IOVA + 63 * PAGE in found
        assert IOVA + 2 * PAGE not in found
    assert table.dirty_bitmap(IOVA, SIZE).count == 0, "read and forgotten"
    # By parts, and with a bit for several pages.
    mock.make_dirty(table, IOVA, SIZE, [5, 6], PAGE)
    assert list(table.dirty_bitmap(IOVA, 6 * PAGE)) == [IOVA + 5 * PAGE]
    assert [(each.first, each.size) for each in table.dirty_bitmap(IOVA, SIZE, page_size=2 * PAGE).ranges()] == [
        (IOVA + 6 * PAGE, 2 * PAGE)
    ]
    # Behind a gap the kernel does not look, and does not say so.
    assert ioas.unmap(IOVA, SIZE) == SIZE
    for number in (0, 2, 3):
        ioas.map(address_of(memory) + number * PAGE, PAGE, IOVA + number * PAGE)
    mock.make_dirty(table, IOVA, 4 * PAGE, [0, 2, 3], PAGE)
    assert list(table.dirty_bitmap(IOVA, 4 * PAGE)) == [IOVA]
    assert list(table.dirty_bitmap(IOVA + 2 * PAGE, 2 * PAGE)) == [IOVA + 2 * PAGE, IOVA + 3 * PAGE]
    table.set_dirty_tracking(False)
    device.attach_pt(ioas)
    table.destroy()


def test_log_over_page_tables(ioas: Ioas, device: MockDevice, memory: memoryview) -> None:
    """The class behind `AddressSpace.track_dirty`, with the real requests; only who is moved over is a mock."""
    log = HwptDirtyLog(ioas, [device], PAGE)  # type: ignore[list-item]
    (table,) = log._tables
    assert log.read(IOVA, SIZE).count == 0
    mock.make_dirty(table, IOVA, SIZE, [7, 8, 9], PAGE)
    assert log.read(IOVA, SIZE).count == 3
    mock.make_dirty(table, IOVA, SIZE, [8], PAGE)
    unmapped, last = log.unmap(IOVA, SIZE)
    assert (unmapped, list(last)) == (SIZE, [IOVA + 8 * PAGE])
    log.stop()
    assert table.destroyed


def test_device_that_does_not_track(ioas: Ioas) -> None:
    device = MockDevice(ioas, flags=mock.NO_DIRTY)
    with pytest.raises(UnsupportedError, match="DIRTY_TRACKING"):
        ioas.alloc_hwpt(device.device_id, flags=HwptAllocFlags.DIRTY_TRACKING)
    table = ioas.alloc_hwpt(device.device_id)
    with pytest.raises(UnsupportedError, match=r"without HwptAllocFlags\.DIRTY_TRACKING"):
        table.set_dirty_tracking(True)


# -- nesting


def test_nested_page_tables_are_told_what_to_forget(ioas: Ioas, device: MockDevice, parent: Hwpt) -> None:
    with parent.alloc_nested(device.device_id, MockData(0x1234)) as nested:
        device.attach_pt(nested)
        with pytest.raises(VfioIoctlError, match="built on it") as caught:
            parent.destroy()
        assert caught.value.errno == errno.EBUSY
        for index in range(4):
            mock.check_iotlb(nested, index, 0x1234)
        nested.invalidate([MockInvalidate(0), MockInvalidate(2)])
        for index, value in enumerate((0, 0x1234, 0, 0x1234)):
            mock.check_iotlb(nested, index, value)
        with pytest.raises(VfioIoctlError, match="1 of 3 entries were done"):
            nested.invalidate([MockInvalidate(1), MockInvalidate(99), MockInvalidate(3)])
        mock.check_iotlb(nested, 1, 0)
        mock.check_iotlb(nested, 3, 0x1234)
        nested.invalidate([MockInvalidate(everything=True)])
        mock.check_iotlb(nested, 3, 0)
        nested.invalidate([])
        device.attach_pt(ioas)
    plain = ioas.alloc_hwpt(device.device_id)
    with refused(errno.EINVAL):
        plain.alloc_nested(device.device_id, MockData(1))


def test_page_faults_wait_for_an_answer(ioas: Ioas, device: MockDevice, parent: Hwpt) -> None:
    queue = ioas.iommufd.alloc_fault_queue()
    with parent.alloc_nested(device.device_id, MockData(1), fault_id=queue.id) as nested:
        device.attach_pt(nested)
        with pytest.raises(DeadlineError):
            queue.read(0.05)
        for group in (1, 2, 3):
            device.fault(0x1000 * group, group, PageFaultPermission.READ)
        faults = queue.read(10)
        assert [each.group for each in faults] == [1, 2, 3]
        first = faults[0]
        assert (first.device_id, first.address, first.permission) == (
            device.device_id,
            0x1000,
            PageFaultPermission.READ,
        )
        assert PageFaultFlags.LAST_PAGE in first.flags
        queue.respond([first.cookie])
        queue.respond([each.cookie for each in faults[1:]], PageResponse.INVALID)
        with pytest.raises(OSError, match="answer page faults"):
            queue.respond([first.cookie])
        device.attach_pt(ioas)
    queue.destroy()


# -- virtual IOMMUs


def viommu(parent: Hwpt, device: MockDevice) -> Viommu:
    return Viommu.alloc(parent, device.device_id, mock.VIOMMU, struct.pack("=IIQQ", 0xCAFE, 0, 0, 0))


def test_virtual_iommu_answers_in_its_data(parent: Hwpt, device: MockDevice) -> None:
    with viommu(parent, device) as virtual:
        given, answer, offset, length = struct.unpack("=IIQQ", virtual.data)
        assert (given, answer, length) == (0xCAFE, 0xCAFE, 2 * PAGE)
        with mmap.mmap(virtual.iommufd.fileno(), length, offset=offset) as registers:  # as Tegra's has some
            assert registers[:4] == struct.pack("=I", 0xCAFE)
    with pytest.raises(UnsupportedError, match="no virtual IOMMU of type 77"):
        Viommu.alloc(parent, device.device_id, 77)


def test_events_of_a_virtual_device(ioas: Ioas, parent: Hwpt, device: MockDevice) -> None:
    virtual = viommu(parent, device)
    with virtual.alloc_vdevice(device.device_id, 0x99):
        with pytest.raises(VfioIoctlError, match="taken, or the device has one"):
            virtual.alloc_vdevice(device.device_id, 0x98)
        queue = virtual.alloc_event_queue(mock.VEVENTQ, 2, record_size=4)
        with virtual.alloc_nested(device.device_id, MockData(1)) as nested:
            device.attach_pt(nested)
            with pytest.raises(DeadlineError):
                queue.read(0.05)
            device.event()
            (event,) = queue.read(10)
            assert (event.flags, event.sequence, event.data) == (VeventFlags(0), 0, struct.pack("=I", 0x99))
            for _ in range(4):
                device.event()  # two fit, two are lost
            *kept, lost = queue.read(10)
            assert [each.sequence for each in kept] == [1, 2]
            assert (lost.flags, lost.data) == (VeventFlags.LOST_EVENTS, b"")
            device.attach_pt(ioas)
        queue.destroy()
    virtual.destroy()


def test_caches_of_a_virtual_device_are_told_what_to_forget(ioas: Ioas, parent: Hwpt, device: MockDevice) -> None:
    virtual = viommu(parent, device)
    with virtual.alloc_vdevice(device.device_id, 0x99), virtual.alloc_nested(device.device_id, MockData(1)) as nested:
        device.attach_pt(nested)
        device.check_cache(1, mock.CACHED)
        virtual.invalidate([MockDeviceInvalidate(0x99, 1)])
        device.check_cache(1, 0)
        device.check_cache(2, mock.CACHED)
        with refused(errno.EINVAL):
            virtual.invalidate([MockDeviceInvalidate(0x55, 2)])
        virtual.invalidate([MockDeviceInvalidate(0x99, everything=True)])
        device.check_cache(2, 0)
        device.attach_pt(ioas)
    virtual.destroy()


def test_hardware_queues(ioas: Ioas, parent: Hwpt, device: MockDevice, memory: memoryview) -> None:
    virtual = viommu(parent, device)
    with refused(errno.EIO):
        virtual.alloc_hw_queue(mock.HW_QUEUE, 1, IOVA, PAGE)  # the first has to be there
    first = virtual.alloc_hw_queue(mock.HW_QUEUE, 0, IOVA, PAGE)
    second = virtual.alloc_hw_queue(mock.HW_QUEUE, 1, IOVA, PAGE)
    with refused(errno.EBUSY):
        first.destroy()  # the second depends on it
    with refused(errno.EINVAL):
        virtual.alloc_hw_queue(mock.HW_QUEUE, 9, IOVA, PAGE)
    with pytest.raises(UnsupportedError, match="no hardware queues of type 77"):
        virtual.alloc_hw_queue(77, 0, IOVA, PAGE)
    second.destroy()
    first.destroy()
    virtual.destroy()
