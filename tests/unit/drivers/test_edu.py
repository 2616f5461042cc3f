"""The edu driver where its device misbehaves; what works is shown on QEMU's."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import INTX, MSI, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.threads import eventually, start
from vfio_user import DmaSlice, Iova, PciDevice
from vfio_user._uapi import lib
from vfio_user.drivers import edu
from vfio_user.drivers.edu import Edu, Interrupt
from vfio_user.errors import (
    ArgumentError,
    BoundsError,
    DeadlineError,
    DeviceGoneError,
    UnsupportedError,
    VfioIoctlError,
)
from vfio_user.pci import Command


def put(device: FakeDevice, register: int, value: int) -> None:
    device.write(0, register, struct.pack("<I", value))


def get(device: FakeDevice, register: int) -> int:
    return int.from_bytes(device.read(0, register, 4), "little")


@pytest.fixture
def machine(device: FakeDevice) -> FakeDevice:
    put(device, edu.ID, 0x010000ED)
    return device


@pytest.fixture
def driver(machine: FakeDevice, pci: PciDevice) -> Iterator[Edu]:
    with Edu(pci) as driver:
        yield driver


def interrupt(device: FakeDevice, reason: int, kind: int = MSI) -> None:
    put(device, edu.IRQ_STATUS, reason)
    os.eventfd_write(device.eventfds[kind, 0], 1)


def test_probe_and_remove(machine: FakeDevice, pci: PciDevice) -> None:
    with Edu(pci) as driver:
        assert driver.identification == 0x010000ED
        assert pci.config.command & Command.MASTER
        assert driver.vector in pci.irqs.msi.vectors
    assert not pci.config.command & Command.MASTER
    assert not pci.irqs.msi.vectors


def test_device_that_is_something_else(machine: FakeDevice, pci: PciDevice) -> None:
    put(machine, edu.ID, 0x01000000)
    with pytest.raises(UnsupportedError, match="identification 0x01000000 does not end in ed"), Edu(pci):
        pass
    assert not pci.config.command & Command.MASTER


def test_device_that_fell_off_the_bus(machine: FakeDevice, pci: PciDevice) -> None:
    put(machine, edu.ID, 0xFFFFFFFF)
    with pytest.raises(DeviceGoneError, match=f"{ADDRESS} reads all-ones"), Edu(pci):
        pass


def test_interrupt_that_can_not_be_enabled_leaves_no_bus_master(
    machine: FakeDevice, pci: PciDevice, kernel: FakeKernel
) -> None:
    kernel.failing["VFIO_DEVICE_SET_IRQS"] = 28
    with pytest.raises(VfioIoctlError, match="ENOSPC"), Edu(pci):
        pass
    assert not pci.config.command & Command.MASTER
    assert pci.driver is None


def test_interrupt_that_can_not_be_disabled_leaves_no_bus_master(driver: Edu, kernel: FakeKernel) -> None:
    kernel.failing["VFIO_DEVICE_SET_IRQS"] = 5
    with pytest.raises(VfioIoctlError, match="EIO"):
        driver.stop()
    assert not driver.pci.config.command & Command.MASTER


def test_no_interrupt_comes(driver: Edu) -> None:
    begin = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no interrupt on .* MSI 0"):
        driver.factorial(5, timeout=0.02)
    with driver.alloc() as memory, pytest.raises(DeadlineError, match="no interrupt"):
        driver.copy_to_device(memory[:16], timeout=0.02)
    assert time.monotonic() - begin < 5


def test_unit_that_stays_busy(driver: Edu, machine: FakeDevice) -> None:
    put(machine, edu.STATUS, 1)
    with pytest.raises(DeadlineError):
        driver.factorial(5, timeout=0.02)
    put(machine, edu.DMA_COMMAND, 1)
    with pytest.raises(DeadlineError):
        driver.reset_prepare()


def test_transfer_of_a_dead_process_that_does_not_end(
    machine: FakeDevice, pci: PciDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edu, "_LEFT_BEHIND_TIMEOUT", 0.02)
    put(machine, edu.DMA_COMMAND, 1)
    with pytest.raises(DeadlineError), Edu(pci):
        pass
    assert not pci.config.command & Command.MASTER, "it would reach memory"


def test_interrupt_of_the_same_reason_that_was_left_behind(driver: Edu, machine: FakeDevice) -> None:
    put(machine, edu.IRQ_STATUS, Interrupt.FACTORIAL)
    waiter = start(lambda: driver.factorial(5, timeout=30.0))
    assert eventually(lambda: get(machine, edu.IRQ_ACK) == Interrupt.FACTORIAL, 10)
    put(machine, edu.FACTORIAL, 120)
    interrupt(machine, Interrupt.FACTORIAL)
    assert waiter.result(10) == 120


def test_interrupt_of_before_that_comes_late_is_no_result(driver: Edu, machine: FakeDevice) -> None:
    """The unit says that it is done before it interrupts."""
    waiter = start(lambda: driver.factorial(5, timeout=30.0))
    assert eventually(lambda: get(machine, edu.FACTORIAL) == 5, 10)
    put(machine, edu.STATUS, 0x81)
    interrupt(machine, Interrupt.FACTORIAL)
    assert not eventually(waiter.done, 0.05)
    put(machine, edu.FACTORIAL, 120)
    put(machine, edu.STATUS, 0x80)
    assert waiter.result(10) == 120


def test_interrupt_that_came_too_late_for_its_call_is_not_taken_for_another(driver: Edu, machine: FakeDevice) -> None:
    interrupt(machine, Interrupt.DMA)
    waiter = start(lambda: driver.factorial(5, timeout=30.0))
    time.sleep(0.02)
    assert not waiter.done()
    assert get(machine, edu.IRQ_ACK) == Interrupt.DMA
    put(machine, edu.FACTORIAL, 120)
    interrupt(machine, Interrupt.FACTORIAL)
    assert waiter.result(10) == 120


def test_line_interrupt_is_unmasked_after_each(machine: FakeDevice) -> None:
    machine.irqs[MSI] = (0, 0)
    with vfio_user.open(ADDRESS, mode="type1v2") as pci, Edu(pci) as driver:
        waiter = start(lambda: driver.factorial(0, timeout=30.0))
        time.sleep(0.02)
        interrupt(machine, Interrupt.FACTORIAL, INTX)
        waiter.result(10)
        unmasked = int(lib.VFIO_IRQ_SET_ACTION_UNMASK | lib.VFIO_IRQ_SET_DATA_NONE)
        assert [flags for index, flags, *_ in machine.set_irqs if index == INTX][1:] == [unmasked]


def test_arguments_that_can_not_be(driver: Edu) -> None:
    for number in (-1, 1 << 32):
        with pytest.raises(BoundsError, match="does not fit 32 bits"):
            driver.factorial(number)
    with driver.alloc(8192) as memory:
        for size, offset in ((8192, 0), (16, -1), (16, Edu.BUFFER_SIZE)):
            with pytest.raises(BoundsError, match="do not fit its buffer"):
                driver.copy_from_device(memory[:size], offset)
        with pytest.raises(ArgumentError, match="nothing to copy"):
            driver.copy_to_device(memory[:0])
        assert memory.iova + memory.size <= Edu.IOVA_LIMIT
    far = DmaSlice(memoryview(bytearray(16)), Iova(1 << 32))
    with pytest.raises(BoundsError, match=r"beyond its 28 address bits; allocate with Edu\.alloc\(\)"):
        driver.copy_to_device(far)
