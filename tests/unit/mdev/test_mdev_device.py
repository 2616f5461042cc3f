"""Mediated devices, open: what they are embedded in, how they are reset, and what they refuse."""

from __future__ import annotations

import dataclasses
import errno

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.mdev.conftest import FIRST
from vfio_user import AddressSpace, MdevDevice, PciDevice, container_of, open_devices
from vfio_user._uapi import lib
from vfio_user.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    MalformedReplyError,
    MemoryLockBusyError,
    NotRestoredError,
    UnsupportedError,
    VfioIoctlError,
    VfioOSError,
)
from vfio_user.mdev import MDEV_OPS, mdev


class Listener:
    """Note what a driver is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.trouble: Exception | None = None

    def reset_prepare(self) -> None:
        self.told.append("prepare")
        if self.trouble is not None:
            raise self.trouble

    def reset_done(self) -> None:
        self.told.append("done")


def test_open_and_close(instance: FakeDevice) -> None:
    with nothing_left():
        with vfio_user.open_mdev(FIRST, mode="type1v2") as device:
            assert (device.name, device.node, device.uuid) == (FIRST, mdev(FIRST), mdev(FIRST).uuid)
            assert open_devices() == (device.vdev,)
            assert container_of(device.vdev, MdevDevice.vdev) is device
            with pytest.raises(TypeError, match=r"embedded as MdevDevice\.vdev, not as PciDevice\.vdev"):
                container_of(device.vdev, PciDevice.vdev)
            assert FIRST in repr(device)
        device.close()
        assert device.address_space.closed
        assert "closed" in repr(device)
        with pytest.raises(ClosedError):
            device.reset()


def test_refused_before_anything_is_opened(instance: FakeDevice, kernel: FakeKernel) -> None:
    with nothing_left(), AddressSpace("type1v2") as space:
        del kernel.asked[:]
        with pytest.raises(ArgumentError, match="no mediated device"):
            vfio_user.open_mdev(FIRST.replace("1001", "1009"))
        with pytest.raises(ArgumentError, match="not a UUID"):
            vfio_user.open_mdev(ADDRESS)
        with pytest.raises(ArgumentError, match="either a mode or an address space"):
            vfio_user.open_mdev(FIRST, mode="type1", address_space=space)
        assert kernel.asked == []
        already = pytest.raises(BusyError, match=f"{FIRST} is open in this process already")
        with vfio_user.open_mdev(FIRST, address_space=space), already:
            vfio_user.open_mdev(FIRST, address_space=space)


def test_one_address_space_with_a_function(instance: FakeDevice, device: FakeDevice) -> None:
    with nothing_left(), vfio_user.open(ADDRESS, mode="type1v2") as pci:
        with vfio_user.open_mdev(FIRST, address_space=pci.address_space) as other:
            assert other.address_space is pci.address_space
        assert not pci.address_space.closed


def test_face_of_a_pci_function(instance: FakeDevice) -> None:
    with vfio_user.open_mdev(FIRST, mode="type1v2") as device:
        assert device.pci.config.vendor_id == 0x1234
        device.pci.bar(0).write32(4, 7)
        assert device.pci.bar(0).read32(4) == 7
        assert device.pci.irqs.intx is device.vdev.irqs[0]
        assert [each.label for each in device.vdev.irqs[:3]] == ["INTx", "MSI", "MSI-X"]
        with pytest.raises(UnsupportedError, match="no BAR 3; it has: 0"):
            device.pci.bar(3)


def test_one_that_looks_like_something_else(instance: FakeDevice) -> None:
    instance.flags = int(lib.VFIO_DEVICE_FLAGS_CCW)
    with vfio_user.open_mdev(FIRST, mode="type1v2") as device:
        assert device.vdev.irqs[0].label == "irq 0"
        with pytest.raises(UnsupportedError, match="does not look like a PCI function"):
            device.pci  # noqa: B018


def test_lies_about_interrupts(instance: FakeDevice) -> None:
    instance.num_irqs = 2
    with vfio_user.open_mdev(FIRST, mode="type1v2") as device, pytest.raises(Exception, match="no interrupt index 2"):
        device.pci  # noqa: B018


def test_capability_chain_in_a_circle(instance: FakeDevice) -> None:
    instance.capabilities[0] = b"\x01\x00\x01\x00\x20\x00\x00\x00"  # at 32, and says that 32 is next
    with nothing_left(), pytest.raises(MalformedReplyError, match="comes back to offset 32"):
        vfio_user.open_mdev(FIRST, mode="type1v2")


def test_reset_tells_the_driver_and_brings_memory_back(instance: FakeDevice) -> None:
    instance.flags = int(lib.VFIO_DEVICE_FLAGS_PCI)  # says nothing of resets, and can be reset
    with vfio_user.open_mdev(FIRST, mode="type1v2") as device:
        listener = device.driver = Listener()
        bar = device.pci.bar(0)
        place = bar.mmio.address if bar.mmio else 0
        device.reset()
        assert (instance.resets, listener.told) == (1, ["prepare", "done"])
        assert bar.mmio is not None
        assert bar.mmio.address == place
        assert bar.read32(0) == 0


def test_reset_that_its_driver_lacks(instance: FakeDevice, kernel: FakeKernel) -> None:
    kernel.failing["VFIO_DEVICE_RESET"] = errno.ENOTTY
    with vfio_user.open_mdev(FIRST, mode="type1v2") as device:
        with pytest.raises(UnsupportedError, match="can't be reset: its driver has no way"):
            device.reset()
        kernel.failing["VFIO_DEVICE_RESET"] = errno.EIO
        device.driver = listener = Listener()
        listener.trouble = RuntimeError("was busy")
        with pytest.raises(VfioIoctlError, match="EIO") as caught:
            device.reset()
        assert caught.value.__notes__ == ["also: RuntimeError: was busy"]
        assert listener.told == ["prepare", "done"]
        assert device.pci.bar(0).read32(0) == 0, "the memory is back"


def test_driver_that_fails_in_a_reset(instance: FakeDevice) -> None:
    with vfio_user.open_mdev(FIRST, mode="type1v2") as device:
        device.driver = listener = Listener()
        listener.trouble = RuntimeError("was busy")
        with pytest.raises(NotRestoredError, match="was reset, but not all came back") as caught:
            device.reset()
        assert caught.value.exceptions == (listener.trouble,)
        assert instance.resets == 1


def test_reader_that_does_not_leave(instance: FakeDevice) -> None:
    from threading import Event, Thread

    with vfio_user.open_mdev(FIRST, mode="type1v2") as device:
        inside, leave = Event(), Event()

        def read() -> None:
            with device.pci.bar(0).access():
                inside.set()
                leave.wait(20)

        thread = Thread(target=read)
        thread.start()
        inside.wait(20)
        try:
            with pytest.raises(MemoryLockBusyError):
                device.reset(lock_timeout=0.01)
            assert instance.resets == 0
        finally:
            leave.set()
            thread.join()
        device.reset()
        assert instance.resets == 1


def test_variant_table(instance: FakeDevice) -> None:
    calls = []

    def reset(vdev: vfio_user.VfioDevice) -> None:
        calls.append(container_of(vdev, MdevDevice.vdev).name)
        MDEV_OPS.reset(vdev)

    ops = dataclasses.replace(MDEV_OPS, name="variant", reset=reset)
    with vfio_user.open_mdev(FIRST, mode="type1v2", ops=ops) as device:
        device.reset()
        assert (calls, instance.resets) == ([FIRST], 1)


def test_group_that_somebody_has(instance: FakeDevice, kernel: FakeKernel) -> None:
    kernel.failing["/dev/vfio/9"] = errno.EBUSY
    with nothing_left(), pytest.raises(VfioOSError, match=rf"Group 9 \({FIRST}\) is open already"):
        vfio_user.open_mdev(FIRST, mode="type1v2")


def test_instance_that_went_away_meanwhile(instance: FakeDevice, kernel: FakeKernel) -> None:
    kernel.devices.pop(FIRST)
    with nothing_left(), pytest.raises(UnsupportedError, match=rf"group 9 has no device {FIRST} \(any more\)"):
        vfio_user.open_mdev(FIRST, mode="type1v2")
