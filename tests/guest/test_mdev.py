"""Mediated devices on the kernel's samples: found, made, opened in every mode, driven, removed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import AddressSpace, MdevDevice, PciDevice, container_of, testing
from vfio_user.drivers.edu import Edu
from vfio_user.drivers.mtty import InterruptEnable, LineControl, ModemControl, Mtty, SerialState
from vfio_user.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    DeadlineError,
    UnsupportedError,
    VfioError,
    VfioOSError,
)
from vfio_user.kernel.uapi import DeviceFeature, DeviceFlags
from vfio_user.mdev import Mdev, MdevParent, mdev, mdev_parent, mdev_parents, mdevs

MODEL = (0x4348, 0x3253)


@pytest.fixture(scope="module")
def parent() -> MdevParent:
    return mdev_parent("mtty")


@pytest.fixture(scope="module")
def instance(parent: MdevParent) -> Iterator[Mdev]:
    made = parent.type("mtty-2").create()
    yield made
    made.remove()


def test_what_the_machine_offers(parent: MdevParent) -> None:
    assert {"mtty", "mdpy", "mbochs"} <= {each.name for each in mdev_parents()}
    assert {kind.name: kind.title for kind in parent.types} == {
        "mtty-1": "Single port serial",
        "mtty-2": "Dual port serial",
    }
    assert parent.type("2") == parent.type("mtty-2")
    assert {kind.device_api for kind in parent.types} == {"vfio-pci"}
    assert mdev_parent("mdpy").type("vga").description.startswith("virtual display, 640x480")
    with pytest.raises(ArgumentError, match="it has: mtty-1, mtty-2"):
        parent.type("mtty-3")
    with pytest.raises(UnsupportedError, match=r"those that do: .*mdpy, mtty"):
        mdev_parent("0000:00:02.0")


def test_create_and_remove(parent: MdevParent) -> None:
    single, dual = parent.types
    before = (single.available, dual.available)
    name = str(uuid4())
    first = single.create(name)
    try:
        assert (first.name, first.driver, first.type, first.parent) == (name, "mtty", single, parent)
        assert mdev(name) == mdev(UUID(name)) == first
        assert first.iommu_group is not None
        assert not first.noiommu, "its group has a name that says otherwise"
        assert first in mdevs()
        assert single.mdevs == (first,)
        assert single.available == before[0] - 1
        with pytest.raises(BusyError, match=f"there is a mediated device {name} already"):
            dual.create(name)
    finally:
        first.remove()
    assert not first.exists()
    assert (single.available, dual.available) == before
    with pytest.raises(VfioOSError) as caught:
        first.remove()
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(ArgumentError, match="no mediated device"):
        vfio_user.open_mdev(name)


def test_no_more_than_there_is_room_for(parent: MdevParent) -> None:
    kind = mdev_parent("mdpy").type("vga")
    made = []
    try:
        for _ in range(kind.available):
            made.append(kind.create())
        assert kind.available == 0
        with pytest.raises(BusyError, match="mdpy has no room for another mdpy-vga: 0 are left"):
            kind.create()
    finally:
        for each in made:
            each.remove()


def test_open(instance: Mdev, iommu_mode: str) -> None:
    with nothing_left():
        with vfio_user.open_mdev(instance, mode=iommu_mode) as device:
            assert device.vdev.info.flags == DeviceFlags.PCI
            config = device.pci.config
            assert (config.vendor_id, config.device_id, config.class_code) == (*MODEL, 0x070002)
            assert [region is not None for region in device.pci.bars] == [True, True, False, False, False, False]
            assert device.pci.bar(0).mmio is None, "its registers can't be mapped"
            assert [irq.count for irq in device.vdev.irqs] == [1, 1, 0, 0, 0]
            assert container_of(device.vdev, MdevDevice.vdev) is device
            with pytest.raises(TypeError):
                container_of(device.vdev, PciDevice.vdev)
            with pytest.raises(BusyError):
                instance.remove()
            with pytest.raises(BusyError, match="open in this process already"):
                vfio_user.open_mdev(instance.name, mode=iommu_mode)
        device.close()
        with pytest.raises(ClosedError):
            device.pci.bar(0).read8(7)


def test_memory_for_it(instance: Mdev, iommu_mode: str) -> None:
    with nothing_left(), vfio_user.open_mdev(instance, mode=iommu_mode) as device:
        with device.dma_alloc(8192) as buffer:
            assert any(each.first <= buffer.iova <= each.last for each in device.address_space.iova_ranges)
            assert len(device.address_space.mappings) == 1
        assert not device.address_space.mappings


def test_with_a_pci_function_in_one_address_space(instance: Mdev, iommu_mode: str) -> None:
    address = testing.device("edu").address
    with nothing_left(), AddressSpace(iommu_mode) as space:
        # The mediated device first: it has no IOMMU that could be asked for its limits.
        device = vfio_user.open_mdev(instance, address_space=space)
        with device, Mtty(device) as mtty:
            with vfio_user.open(address, address_space=space) as pci, Edu(pci) as edu, edu.alloc() as memory:
                memory.view[:] = b"\x5a" * len(memory)
                edu.copy_to_device(memory[:64])
                memory.view[:] = bytes(len(memory))
                edu.copy_from_device(memory[:64])
                assert bytes(memory.view[:64]) == b"\x5a" * 64
            mtty.ports[1].write(b"x")
            assert mtty.ports[1].read(1) == b"x"


def test_serial_port(instance: Mdev, iommu_mode: str) -> None:
    with nothing_left(), vfio_user.open_mdev(instance, mode=iommu_mode) as device, Mtty(device) as mtty:
        assert device.driver is mtty
        first, second = mtty.ports
        text = bytes(range(0, 256, 3))
        first.configure(baud=9600, line=LineControl.BITS_8 | LineControl.PARITY)
        first.set_modem(ModemControl.DTR | ModemControl.RTS)
        first.set_scratch(0xA5)
        assert first.state == SerialState(
            InterruptEnable.DATA,
            LineControl.BITS_8 | LineControl.PARITY,
            ModemControl.DTR | ModemControl.RTS,
            0xA5,
        )
        first.write(text)
        second.write(b"second")
        assert second.read(6) == b"second"
        assert first.read(len(text)) == text
        assert first.read_available() == b""
        first.write(b"ab")
        with pytest.raises(DeadlineError, match=r"port 0: 2 of 3 bytes came within 0\.05 s"):
            first.read(3, timeout=0.05)
        assert first.read(2) == b"ab", "what came is kept"
        for baud in (0, -1, 7, 230400, 1):
            with pytest.raises(ArgumentError, match="no divisor"):
                first.configure(baud=baud)
    with pytest.raises(ClosedError):
        first.read(1)
    assert device.driver is None


def test_interrupt_wakes_a_reader(instance: Mdev) -> None:
    with vfio_user.open_mdev(instance) as device, Mtty(device) as mtty:
        port = mtty.ports[0]
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(port.read(4, timeout=30)))
        reader.start()
        for byte in b"wake":
            time.sleep(0.02)
            port.write(bytes([byte]))
        reader.join()
        assert received == [b"wake"]
        device.pci.irqs.intx.unmask()
        mtty.vector.drain()
        port.region.write8(0, 0x21)
        assert mtty.vector.wait(timeout=20) == 1
        port.region.write8(0, 0x22)
        assert mtty.vector.drain() == 0, "automasked"
        assert port.read(2) == b'!"'


def test_lost_data_is_told(instance: Mdev) -> None:
    with vfio_user.open_mdev(instance) as device, Mtty(device) as mtty:
        port = mtty.ports[0]
        port.configure()
        for byte in range(17):
            port.region.write8(0, byte)
        with pytest.raises(VfioError, match="port 0 has lost data: its FIFO was full"):
            port.read(1)
        port.configure()
        port.write(b"again")
        assert port.read(5) == b"again"


def test_reset(instance: Mdev) -> None:
    with vfio_user.open_mdev(instance) as device, Mtty(device) as mtty:
        assert not device.vdev.info.flags & DeviceFlags.RESET, "it does not say so"
        device.reset()
        mtty.ports[0].write(b"after")
        assert mtty.ports[0].read(5) == b"after"


def test_features(instance: Mdev, iommu_mode: str) -> None:
    with vfio_user.open_mdev(instance, mode=iommu_mode) as device:
        found = set(device.vdev.features)
        assert {
            DeviceFeature.MIGRATION,
            DeviceFeature.MIG_DEVICE_STATE,
            DeviceFeature.MIG_DATA_SIZE,
            DeviceFeature.DMA_LOGGING_START,
            DeviceFeature.DMA_LOGGING_STOP,
            DeviceFeature.DMA_LOGGING_REPORT,
        } <= found
        assert not {DeviceFeature.PCI_VF_TOKEN, DeviceFeature.LOW_POWER_ENTRY, DeviceFeature.DMA_BUF} & found


def test_not_what_it_looks_like(parent: MdevParent) -> None:
    display = mdev_parent("mdpy").type("vga").create()
    try:
        with nothing_left(), vfio_user.open_mdev(display) as device:
            with pytest.raises(UnsupportedError, match=r"Mtty does not drive .* \(1b36:000f\), a mdpy-vga"):
                Mtty(device)
            with pytest.raises(UnsupportedError, match="has no INTx interrupt"):
                device.pci.irqs.intx.enable(1)
    finally:
        display.remove()


def test_removal_waits_for_another_process(parent: MdevParent) -> None:
    instance = parent.type("mtty-1").create()
    ready, leave = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with vfio_user.open_mdev(instance):
                os.write(ready[1], b"1")
                os.read(leave[0], 1)
            code = 0
        finally:
            os._exit(code)
    try:
        assert os.read(ready[0], 1) == b"1"
        with pytest.raises(VfioOSError, match="open already"):
            vfio_user.open_mdev(instance)
        with pytest.raises(DeadlineError, match="it waits for whoever has the device open"):
            instance.remove(timeout=1)
    finally:
        os.write(leave[1], b"1")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for fd in (*ready, *leave):
            os.close(fd)
    deadline = time.monotonic() + 60
    while instance.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not instance.exists()
