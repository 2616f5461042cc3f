"""Each step of iommufd that can fail is made to: what was begun is taken back, and works the next time."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import vfio_user
from tests.corners.mock_iommu import VEVENTQ, VIOMMU, MockDevice
from tests.guest.leaks import nothing_left
from vfio_user.errors import VfioError
from vfio_user.iommu.iommufd import Iommufd, Viommu
from vfio_user.iommu.iommufd.dirty import HwptDirtyLog
from vfio_user.kernel.mman import address_of
from vfio_user.kernel.uapi import HwptAllocFlags
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
NTH = Path("/proc/thread-self/fail-nth")
SIZE = 64 << 12


@pytest.fixture(autouse=True)
def without_report() -> None:
    """Keep the kernel from a report of each failure that was asked for."""
    Path("/sys/kernel/debug/fail_iommufd/verbose").write_text("0")


@contextmanager
def failing(number: int) -> Iterator[SimpleNamespace]:
    """Let the numbered step of this thread's requests fail; afterwards tell whether there was one."""
    NTH.write_text(str(number))
    try:
        yield (said := SimpleNamespace(failed=False))
    finally:
        said.failed = NTH.read_text().strip() == "0"
        NTH.write_text("0")


def each_step_fails(action: Callable[[], AbstractContextManager[object]]) -> None:
    """Do something over and over, with the first step failing, the second, and so on until all went well."""
    for number in itertools.count(1):
        with nothing_left():
            try:
                with failing(number) as said:
                    result = action()
            except VfioError:
                assert said.failed
                continue
            with result:
                pass
            del result
        if not said.failed:
            break
    assert number > 1, "no step could fail"


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_mapping(vfio_device: Find, backing: str) -> None:
    with vfio_user.open(vfio_device("edu").address, mode="iommufd") as pci:
        each_step_fails(lambda: pci.dma_alloc(SIZE, backing=backing))


def test_opening(vfio_device: Find) -> None:
    with (
        vfio_user.open(vfio_device("nvme").address, mode="iommufd") as other,
        other.dma_alloc(SIZE),
    ):
        space = other.address_space
        each_step_fails(lambda: vfio_user.open(vfio_device("edu").address, address_space=space))


@pytest.fixture
def device() -> Iterator[MockDevice]:
    """Give a device in an address space that has memory."""
    with Iommufd() as iommufd:
        ioas = iommufd.alloc_ioas()
        device = MockDevice(ioas)
        memory = mmap.mmap(-1, SIZE)
        ioas.map(address_of(memoryview(memory)), SIZE)
        yield device


def test_page_tables(device: MockDevice) -> None:
    each_step_fails(lambda: device.ioas.alloc_hwpt(device.device_id, flags=HwptAllocFlags.NEST_PARENT))


def test_dirty_tracking(device: MockDevice) -> None:
    def begin() -> ExitStack:
        log = HwptDirtyLog(device.ioas, [device], 4096)  # type: ignore[list-item]
        stack = ExitStack()
        stack.callback(log.stop)
        return stack

    each_step_fails(begin)


def test_virtual_iommu(device: MockDevice) -> None:
    parent = device.ioas.alloc_hwpt(device.device_id, flags=HwptAllocFlags.NEST_PARENT)
    each_step_fails(lambda: Viommu.alloc(parent, device.device_id, VIOMMU, bytes(24)))
    with Viommu.alloc(parent, device.device_id, VIOMMU) as virtual:
        each_step_fails(lambda: virtual.alloc_vdevice(device.device_id, 1))
        each_step_fails(lambda: virtual.alloc_event_queue(VEVENTQ, 2, record_size=4))
