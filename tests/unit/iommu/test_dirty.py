"""Dirty tracking and changes of address: what is kept, let go of, and undone when something fails."""

from __future__ import annotations

import errno
import gc
import mmap
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.unit.iommu.fake_backend import PAGE, FakeBackend
from vfio_user.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    IovaError,
    UnsupportedError,
    VfioError,
    VfioIoctlError,
)
from vfio_user.iommu import AddressSpace
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.iommu.iommufd.dirty import HwptDirtyLog


def bitmap(iova: int, size: int, *pages: int) -> DirtyBitmap:
    found = DirtyBitmap(iova, size, PAGE)
    for page in pages:
        found._words[page // 64] |= 1 << page % 64
    return found


class FakeLog:
    """Every page is dirty."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.stops = 0

    def read(self, iova: int, size: int) -> DirtyBitmap:
        return bitmap(iova, size, *range(size // PAGE))

    def unmap(self, iova: int, size: int) -> tuple[int, DirtyBitmap]:
        return self.backend.unmap(iova, size), self.read(iova, size)

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def log(backend: FakeBackend) -> FakeLog:
    log = FakeLog(backend)
    cast("Any", backend).start_dirty_log = lambda: log
    return log


# -- tracking


def test_reads_and_unmaps(space: AddressSpace, log: FakeLog) -> None:
    buffer, other = space.alloc(3 * PAGE, backing="memfd"), space.alloc(PAGE)
    with space.track_dirty() as dirty:
        assert repr(dirty) == "<DirtyTracking>"
        assert list(dirty.read(buffer.mapping)) == [buffer.iova + page * PAGE for page in range(3)]
        assert dirty.unmap(buffer).count == 3
        assert buffer.closed
        with pytest.raises(ClosedError):
            buffer.fileno()
        with pytest.raises(ClosedError, match="not mapped"):
            dirty.unmap(buffer)
        assert space.mappings == (other.mapping,)
    assert log.stops == 1
    assert repr(dirty) == "<DirtyTracking stopped>"


def test_one_at_a_time(space: AddressSpace, log: FakeLog) -> None:
    first = space.track_dirty()
    with pytest.raises(BusyError):
        space.track_dirty()
    first.stop()
    first.stop()
    assert log.stops == 1
    space.track_dirty()


def test_unmap_that_is_not_confirmed_keeps_the_memory(space: AddressSpace, backend: FakeBackend, log: FakeLog) -> None:
    buffer = space.alloc(PAGE)
    with space.track_dirty() as dirty:
        backend.short = PAGE
        with pytest.raises(VfioError, match="memory is kept"):
            dirty.unmap(buffer)
        assert buffer.mapping.mapped
        backend.short = 0
        dirty.unmap(buffer)


def test_ends_with_its_address_space(space: AddressSpace, log: FakeLog) -> None:
    dirty = space.track_dirty()
    space.close()
    assert log.stops == 1
    assert not dirty.running
    dirty.stop()
    with pytest.raises(ClosedError, match="address space is closed"):
        space.track_dirty()


# -- bitmaps


def test_bitmaps_of_the_same_pages_become_one() -> None:
    both = bitmap(0, 100 * PAGE, 1, 70)
    both.merge(bitmap(0, 100 * PAGE, 1, 99))
    assert [each.first // PAGE for each in both.ranges()] == [1, 70, 99]
    for other in (bitmap(PAGE, 100 * PAGE), bitmap(0, 99 * PAGE), DirtyBitmap(0, 100 * PAGE, 2 * PAGE)):
        with pytest.raises(ArgumentError, match="not of the same pages"):
            both.merge(other)


# -- by page tables of iommufd


class FakeTable:
    def __init__(self, number: int, ioas: FakeIoas) -> None:
        self.number = number
        self.ioas = ioas
        self.tracking = False

    def set_dirty_tracking(self, enable: bool) -> None:
        self.tracking = enable

    def dirty_bitmap(self, iova: int, size: int, *, page_size: int, clear: bool) -> DirtyBitmap:
        self.ioas.cleared.append(clear)
        return bitmap(iova, size, self.number)

    def destroy(self) -> None:
        assert all(device.target is not self for device in self.ioas.devices), "the kernel would say EBUSY"
        self.ioas.tables.remove(self)


class FakeDevice:
    def __init__(self, ioas: FakeIoas, unit: int, *, tracks: bool = True) -> None:
        self.device_id = len(ioas.devices)
        self.unit = unit
        self.tracks = tracks
        self.closed = False
        self.target: object = ioas
        ioas.devices.append(self)

    def attach_pt(self, target: object) -> None:
        if isinstance(target, FakeTable) and target.number != self.unit:
            raise VfioIoctlError(errno.EINVAL, "VFIO_DEVICE_ATTACH_IOMMUFD_PT")
        self.target = target


class FakeIoas:
    def __init__(self) -> None:
        self.devices: list[FakeDevice] = []
        self.tables: list[FakeTable] = []
        self.cleared: list[bool] = []
        self.unmap: Callable[[int, int], int] = lambda iova, size: size

    def alloc_hwpt(self, device_id: int, *, flags: int) -> FakeTable:
        device = self.devices[device_id]
        if not device.tracks:
            raise UnsupportedError("IOMMU_HWPT_ALLOC")
        self.tables.append(FakeTable(device.unit, self))
        return self.tables[-1]


def track(ioas: FakeIoas, devices: list[FakeDevice]) -> HwptDirtyLog:
    return HwptDirtyLog(cast("Any", ioas), cast("Any", devices), PAGE)


def test_devices_share_page_tables_where_they_can() -> None:
    ioas = FakeIoas()
    devices = [FakeDevice(ioas, unit) for unit in (0, 1, 0)]
    log = track(ioas, devices[:2])
    log.take(cast("Any", devices[2]))
    assert [table.number for table in ioas.tables] == [0, 1]
    assert all(table.tracking for table in ioas.tables)
    assert devices[2].target == ioas.tables[0]
    assert [iova // PAGE for iova in log.read(0, 4 * PAGE)] == [0, 1]
    assert log.unmap(0, 4 * PAGE)[1].count == 2
    assert ioas.cleared == [True, True, False, False]
    devices[0].closed = True
    devices[0].target = None
    log.stop()
    log.stop()
    assert ioas.tables == []
    log.take(cast("Any", devices[1]))
    assert [device.target for device in devices[1:]] == [ioas, ioas], "after the end nothing moves"


def test_all_devices_or_none() -> None:
    ioas = FakeIoas()
    devices = [FakeDevice(ioas, 0), FakeDevice(ioas, 1, tracks=False)]
    with pytest.raises(UnsupportedError):
        track(ioas, devices)
    assert ioas.tables == []
    assert devices[0].target is ioas


# -- new addresses


@pytest.fixture
def updates(backend: FakeBackend) -> list[tuple[int, int, int]]:
    made: list[tuple[int, int, int]] = []

    def update(iova: int, size: int, vaddr: int) -> None:
        backend._called("update_vaddr")
        made.append((iova, size, vaddr))

    cast("Any", backend).update_vaddr = update
    return made


def test_adopted_mapping_takes_the_place_of_the_old(
    space: AddressSpace, backend: FakeBackend, updates: list[tuple[int, int, int]]
) -> None:
    buffer = space.alloc(2 * PAGE)
    old = weakref.ref(buffer.view.obj)
    memory = mmap.mmap(-1, 2 * PAGE)
    mapping = space.adopt(memory, buffer.iova)
    assert space.mappings == (mapping,)
    assert updates == [(buffer.iova, 2 * PAGE, mapping.vaddr)]
    assert buffer.closed
    iova = buffer.iova
    del buffer
    gc.collect()
    assert old() is None, "nothing keeps the old memory"
    with pytest.raises(IovaError, match="mapped already"):
        space.alloc(PAGE, iova=iova)
    mapping.unmap()
    assert backend.mapped == {}
    space.alloc(PAGE, iova=iova)


def test_mapping_of_another_process_is_adopted(
    space: AddressSpace, backend: FakeBackend, updates: list[tuple[int, int, int]]
) -> None:
    memory = mmap.mmap(-1, PAGE)
    backend.mapped[0x40_0000] = (0, PAGE, True, True)
    with pytest.raises(IovaError):
        space.adopt(memory, 1 << 60)
    mapping = space.adopt(memory, 0x40_0000)
    assert space.mappings == (mapping,)
    assert len(updates) == 1
    with pytest.raises(IovaError, match="not the mapping"):
        space.adopt(mmap.mmap(-1, 2 * PAGE), 0x40_0000)


def test_refused_adoption_changes_nothing(
    space: AddressSpace, backend: FakeBackend, updates: list[tuple[int, int, int]]
) -> None:
    def refuse(*_: object) -> None:
        raise VfioIoctlError(errno.EINVAL, "VFIO_IOMMU_MAP_DMA")

    buffer = space.alloc(PAGE)
    backend.before["update_vaddr"] = refuse
    for iova in (buffer.iova, 0x40_0000):
        with pytest.raises(VfioIoctlError):
            space.adopt(mmap.mmap(-1, PAGE), iova)
    assert space.mappings == (buffer.mapping,)
    space.alloc(PAGE, iova=0x40_0000)
