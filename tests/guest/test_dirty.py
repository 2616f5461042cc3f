"""Dirty tracking and changes of address, over all IOMMU modes of the kernel: those that can do, the others say so."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.conftest import MODES
from tests.guest.leaks import nothing_left
from vfio_user import AddressSpace, DmaBuffer, DmaSlice
from vfio_user.addresses import Iova
from vfio_user.drivers.edu import Edu
from vfio_user.errors import (
    AlignmentError,
    BusyError,
    ClosedError,
    IovaError,
    UnsupportedError,
    VfioIoctlError,
)
from vfio_user.iommu.containers import ContainerBackend
from vfio_user.iommu.type1 import ContainerDirtyLog, update_vaddr
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
PAGE = 4096
#: Modes of a kernel that say what was written, and that let memory change its address. Every kernel has such ones, and
#: one that says nothing: ``type1``.
TRACKS = [mode for mode in MODES if mode == "type1v2"]
MOVES = [mode for mode in MODES if mode in ("type1", "type1v2")]
REFUSES = [mode for mode in MODES if mode not in TRACKS]


@pytest.fixture
def edu(vfio_device: Find, iommu_mode: str) -> Iterator[Edu]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci, Edu(pci) as driver:
        yield driver


@pytest.fixture
def space(edu: Edu) -> AddressSpace:
    return edu.pci.address_space


def memfd(edu: Edu, size: int) -> DmaBuffer:
    return edu.pci.dma_alloc(size, iova_limit=edu.IOVA_LIMIT, backing="memfd")


@pytest.mark.parametrize("iommu_mode", REFUSES)
def test_modes_that_cannot_say_so(edu: Edu, space: AddressSpace, iommu_mode: str) -> None:
    with pytest.raises(UnsupportedError, match=r"type1v2 does|DIRTY_TRACKING"):
        space.track_dirty()
    if iommu_mode not in MOVES:
        buffer = memfd(edu, 2 * PAGE)
        with pytest.raises(UnsupportedError, match="VFIO_UPDATE_VADDR"):
            space.invalidate_vaddrs()
        with pytest.raises(UnsupportedError, match="VFIO_UPDATE_VADDR"):
            space.adopt(buffer.view, buffer.iova)
        assert buffer.mapping.mapped


@pytest.mark.parametrize("iommu_mode", TRACKS)
def test_dirty_pages(edu: Edu, space: AddressSpace) -> None:
    with edu.alloc(8 * PAGE) as buffer, space.track_dirty() as dirty:
        with pytest.raises(BusyError, match="tracked already"):
            space.track_dirty()
        # No hardware tells a container what was written: every page that it has pinned counts.
        for _ in range(2):
            found = dirty.read(buffer)
            assert (found.iova, found.size, found.page_size, found.count) == (buffer.iova, 8 * PAGE, PAGE, 8)
        # A mapping that is made meanwhile is tracked too, and still works.
        later = edu.alloc(2 * PAGE)
        buffer[:5] = b"dirty"
        edu.copy_to_device(buffer[:5])
        edu.copy_from_device(later[:5])
        assert bytes(later[:5]) == b"dirty"
        last = dirty.unmap(later)
        assert list(last) == [later.iova, later.iova + PAGE]
        assert later.closed
        with pytest.raises(ClosedError, match="not mapped"):
            dirty.read(later)
    assert not dirty.running
    dirty.stop()
    with edu.alloc() as buffer, pytest.raises(ClosedError, match="was stopped"):
        dirty.read(buffer)
    with space.track_dirty() as again, memfd(edu, PAGE) as buffer:
        assert again.unmap(buffer).count == 1
        assert buffer.closed


@pytest.mark.parametrize("iommu_mode", TRACKS)
def test_parts_of_mappings_have_no_bitmap(edu: Edu, space: AddressSpace) -> None:
    backend = space.backend
    assert isinstance(backend, ContainerBackend)
    with edu.alloc(4 * PAGE) as buffer:
        log = ContainerDirtyLog(backend.container)
        for iova, size in ((buffer.iova, PAGE), (buffer.iova + PAGE, 3 * PAGE)):
            with pytest.raises(VfioIoctlError) as caught:
                log.read(iova, size)
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(AlignmentError):
            log.read(buffer.iova, 100)
        log.stop()
        log.stop()
        with pytest.raises(VfioIoctlError) as caught:
            log.read(buffer.iova, 4 * PAGE)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("iommu_mode", MOVES)
def test_memory_changes_its_address_while_devices_use_it(edu: Edu, space: AddressSpace) -> None:
    buffer = memfd(edu, 2 * PAGE)
    stays = edu.alloc()
    buffer[:4] = b"here"
    edu.copy_to_device(buffer[:4])
    assert space.invalidate_vaddrs() == 3 * PAGE
    with pytest.raises(VfioIoctlError, match="invalid already") as caught:
        space.invalidate_vaddrs()
    assert caught.value.errno == errno.EINVAL
    edu.copy_from_device(buffer[100:104])
    assert bytes(buffer[100:104]) == b"here", "DMA goes on meanwhile"
    elsewhere = memoryview(mmap.mmap(buffer.fileno(), 2 * PAGE))
    with pytest.raises(IovaError, match="not the mapping"):
        space.adopt(elsewhere[:PAGE], buffer.iova)
    with pytest.raises(VfioIoctlError, match="Nothing is mapped") as caught:
        space.adopt(elsewhere, 0x40_0000)
    assert caught.value.errno == errno.ENOENT
    mapping = space.adopt(elsewhere, buffer.iova)
    assert (mapping.iova, mapping.size, mapping.mapped) == (buffer.iova, 2 * PAGE, True)
    assert buffer.closed
    edu.copy_from_device(DmaSlice(elsewhere[200:204], Iova(mapping.iova + 200)))
    assert bytes(elsewhere[200:204]) == b"here"
    # The other one never got a new address; it is unmapped like any.
    stays.close()
    mapping.unmap()
    buffer.close()


@pytest.mark.parametrize("iommu_mode", MOVES)
def test_address_that_is_valid_is_not_replaced(edu: Edu, space: AddressSpace) -> None:
    backend = space.backend
    assert isinstance(backend, ContainerBackend)
    with edu.alloc() as buffer:
        with pytest.raises(VfioIoctlError, match="still valid") as caught:
            space.adopt(buffer.view, buffer.iova)
        assert caught.value.errno == errno.EINVAL
        assert buffer.mapping.mapped
        space.invalidate_vaddrs()
        update_vaddr(backend.container, buffer.iova, PAGE, buffer.mapping.vaddr or 0)
