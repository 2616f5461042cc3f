"""Optional abilities of devices: found by probing, used where they are, named where they are missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.driven import asleep
from tests.guest.leaks import nothing_left
from vfio_user import IovaRange, PciDevice
from vfio_user.device.dma_log import DmaLog
from vfio_user.drivers.edu import Edu
from vfio_user.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    DeadlineError,
    MemoryDisabledError,
    UnsupportedError,
    VfioIoctlError,
)
from vfio_user.kernel.uapi import DeviceFeature, FeatureOperation
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
SLEEPY = {
    DeviceFeature.LOW_POWER_ENTRY,
    DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP,
    DeviceFeature.LOW_POWER_EXIT,
}


@pytest.fixture
def nvme(vfio_device: Find, iommu_mode: str) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("nvme").address, mode=iommu_mode) as pci:
        yield pci


@pytest.fixture
def memory(vfio_device: Find) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("ivshmem").address) as pci:
        yield pci


def is_active(pci: PciDevice) -> bool:
    return pci.low_power.active


# -- what there is


def test_features_are_found(memory: PciDevice) -> None:
    found = set(memory.vdev.features)
    assert found >= SLEEPY
    assert found - SLEEPY <= {DeviceFeature.DMA_BUF}
    assert memory.vdev.features.operations(DeviceFeature.LOW_POWER_EXIT) == FeatureOperation.SET
    memory.vdev.features.require(DeviceFeature.LOW_POWER_EXIT, FeatureOperation.SET)
    with pytest.raises(UnsupportedError, match="LOW_POWER_EXIT"):
        memory.vdev.features.require(DeviceFeature.LOW_POWER_EXIT, FeatureOperation.GET)
    assert 4711 not in memory.vdev.features
    with pytest.raises(ArgumentError):
        memory.vdev.features.operations(1 << 16)


def test_what_is_missing_is_named(memory: PciDevice) -> None:
    features = memory.vdev.features
    for name, use in (
        ("BUS_MASTER", lambda: features.set_bus_master(True)),
        ("ZPCI_ERROR", lambda: features.zpci_error),
        ("DMA_LOGGING_START", lambda: DmaLog(memory.vdev)),
        ("MIGRATION", lambda: features.require(DeviceFeature.MIGRATION)),
    ):
        with pytest.raises(UnsupportedError, match=f"{memory.name} has no feature {name}"):
            use()


# -- low power


def test_sleeping_device_is_refused_by_name_and_comes_back(nvme: PciDevice) -> None:
    bar = nvme.bar(0)
    version, view = bar.read32(8), bar.view(8, 4)
    with nvme.low_power:
        assert is_active(nvme)
        assert asleep(nvme)
        with pytest.raises(MemoryDisabledError):
            bar.read32(8)
        assert bytes(view) == b"\xff" * 4
        assert nvme.config.vendor_id == 0x1B36, "the kernel wakes it up for this"
        with pytest.raises(MemoryDisabledError, match="leave D3 or low power"):
            nvme.revive()
        with pytest.raises(VfioIoctlError) as caught:
            nvme.low_power.enter()
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(MemoryDisabledError):
            bar.read32(8)
    assert not is_active(nvme)
    assert bar.read32(8) == version
    assert int.from_bytes(bytes(view), "little") == version
    nvme.low_power.exit()


def test_access_wakes_and_tells(nvme: PciDevice) -> None:
    version = nvme.bar(0).read32(8)
    wakeup = nvme.low_power.enter_with_wakeup()
    assert asleep(nvme)
    with pytest.raises(DeadlineError):
        wakeup.wait(0.05)
    assert nvme.config.vendor_id == 0x1B36
    assert wakeup.wait(5.0) == 1
    with pytest.raises(MemoryDisabledError):
        nvme.bar(0).read32(8)
    nvme.low_power.exit()
    assert nvme.bar(0).read32(8) == version


def test_reset_leaves_it_asleep(nvme: PciDevice) -> None:
    version = nvme.bar(0).read32(8)
    with nvme.low_power:
        nvme.reset()
        with pytest.raises(MemoryDisabledError):
            nvme.bar(0).read32(8)
        nvme.config.set_command(enable=0x4)
        with pytest.raises(MemoryDisabledError):
            nvme.bar(0).read32(8)
    assert nvme.bar(0).read32(8) == version


def test_closing_wakes_it_up(vfio_device: Find) -> None:
    address = vfio_device("nvme").address
    with nothing_left():
        pci = vfio_user.open(address)
        pci.low_power.enter_with_wakeup()
        pci.close()
        with vfio_user.open(address) as again:
            assert again.bar(0).read32(8) != 0xFFFFFFFF


def test_peers_are_away_while_it_sleeps(vfio_device: Find, iommu_mode: str) -> None:
    with (
        nothing_left(),
        vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci,
        vfio_user.open(vfio_device("ivshmem").address, address_space=pci.address_space) as memory,
        Edu(pci) as edu,
        memory.bar(2).map_for(pci.address_space, iova_limit=edu.IOVA_LIMIT) as peer,
        edu.alloc() as buffer,
    ):
        with memory.low_power:
            assert memory.vdev.memory.peers == (peer,)
            assert [each.mapped for each in memory.vdev.memory.peers] == [False]
        assert [each.mapped for each in memory.vdev.memory.peers] == [True]
        buffer[:4] = b"peer"
        edu.copy_to_device(buffer[:4])
        edu.copy_from_device(peer.part(64, 4))
        assert memory.bar(2).pread(64, 4) == b"peer"


# -- dma-buf


def test_dma_buf(memory: PciDevice, vfio_device: Find) -> None:
    bar = memory.bar(2)
    if DeviceFeature.DMA_BUF not in memory.vdev.features:
        with pytest.raises(UnsupportedError, match="has no feature DMA_BUF"):
            bar.export_dma_buf()
        return
    with bar.export_dma_buf() as file:
        assert os.fstat(file.fileno()).st_size in (0, bar.size)
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == bar.size
    with bar.export_dma_buf([(0, 4096), (8192, 8192)], write=False) as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == 12288
    with pytest.raises(AlignmentError):
        bar.export_dma_buf([(0, 100)])
    with pytest.raises(BoundsError):
        bar.export_dma_buf([(bar.size, 4096)])
    with pytest.raises(ArgumentError):
        bar.export_dma_buf([])
    # Configuration space is no memory of a BAR; that of a PCI Express device is a page.
    with (
        vfio_user.open(vfio_device("nvme").address) as nvme,
        pytest.raises(UnsupportedError, match="no memory that other devices could reach"),
    ):
        nvme.vdev.region(7).export_dma_buf([(0, 4096)])


def test_log_that_is_not_there_is_refused_before_anything_else(memory: PciDevice) -> None:
    with pytest.raises(UnsupportedError):
        DmaLog(memory.vdev).start([IovaRange(0, 4095)])
