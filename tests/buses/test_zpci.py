"""PCI on s390x: little-endian registers on a big-endian machine, one window of IOVAs, MSI-X only."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vfio_user
from tests.buses.conftest import Way
from tests.guest.leaks import nothing_left
from vfio_user import IovaRange
from vfio_user.drivers.virtio import VirtioBlk, VirtioRng
from vfio_user.errors import IovaError
from vfio_user.kernel.uapi import DeviceCapability

Place = Callable[[str], str]


def test_what_it_is(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open(place("nvme"), **way) as pci:
        assert (pci.config.vendor_id, pci.config.device_id, pci.config.class_code) == (0x1B36, 0x0010, 0x010802)
        assert pci.bar(0).read32(0x08) == 0x00010400, "NVMe 1.4"
        assert pci.bar(0).pread(0x08, 4) == bytes.fromhex("00040100")
        assert (pci.irqs.intx.count, pci.irqs.msi.count) == (0, 0)
        assert pci.irqs.msix.count
        found = {each.identity for each in pci.vdev.info.capabilities}
        assert {DeviceCapability.ZPCI_BASE, DeviceCapability.ZPCI_GROUP} <= found


def test_memory_is_mapped_within_its_window(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open(place("nvme"), **way) as pci:
        assert pci.zpci is not None
        first, last = pci.zpci.start_dma, pci.zpci.end_dma
        assert first == 1 << 32
        assert pci.address_space.iova_ranges == (IovaRange(first, last),)
        with pci.dma_alloc(1 << 20) as buffer:
            assert first <= buffer.iova
            assert buffer.iova + buffer.size - 1 <= last
            for outside in (0x1000, last + 1):
                with pytest.raises(IovaError):
                    pci.address_space.map(buffer, iova=outside)
        with pytest.raises(IovaError):
            pci.dma_alloc(4096, iova_limit=1 << 32)


def test_registers_are_written(place: Place, way: Way) -> None:
    with vfio_user.open(place("nvme"), **way) as pci:
        bar = pci.bar(0)
        before = bar.read32(0x24)
        try:
            bar.write32(0x24, 0x001F001F)  # sizes of the admin queues
            assert bar.read32(0x24) == 0x001F001F
        finally:
            bar.write32(0x24, before)


def test_virtqueues_are_little_endian_here_too(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open(place("virtio-blk"), **way) as pci, VirtioBlk(pci, timeout=60) as disk:
        data = bytes(range(256)) * 16
        for sector in (0, 8, disk.capacity - 8):
            disk.write(sector, data)
            assert disk.read(sector, 8) == data
    with nothing_left(), vfio_user.open(place("virtio-rng"), **way) as pci, VirtioRng(pci, timeout=60) as entropy:
        assert len(set(entropy.read(5000))) > 200
