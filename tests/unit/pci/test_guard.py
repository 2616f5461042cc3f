"""Configuration writes that take memory away, give it back, or reset: which do, at every width and offset."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from tests.unit.pci.reset_fakes import COMMAND, ResettableDevice
from vfio_user import DeviceHealth, PciDevice
from vfio_user.errors import BusyError, LockOrderError, MemoryDisabledError, NotRestoredError, VfioIoctlError
from vfio_user.pci import Command

POWER, EXPRESS, ADVANCED = 0x40, 0x50, 0x60
MEMORY = int(Command.MEMORY)


class Listener:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def reset_prepare(self) -> None:
        self.calls.append("prepare")

    def reset_done(self) -> None:
        self.calls.append("done")


@pytest.fixture
def device(kernel: FakeKernel, tree: FakeSysfs) -> Iterator[ResettableDevice]:
    """A device with power management, and both ways to start a function-level reset."""
    tree.add(ADDRESS, driver="vfio-pci", group=7, vfio_device="vfio0")
    device = kernel.devices[ADDRESS] = ResettableDevice()
    device.write(CONFIG, 0x06, b"\x10\x00")
    device.write(CONFIG, 0x34, bytes([POWER]))
    device.write(CONFIG, POWER, bytes([0x01, EXPRESS]))
    device.write(CONFIG, EXPRESS, bytes([0x10, ADVANCED, 2, 0]) + (1 << 28).to_bytes(4, "little"))
    device.write(CONFIG, ADVANCED, bytes([0x13, 0, 6, 0b11]))
    yield device
    device.close()


@pytest.fixture
def pci(device: ResettableDevice) -> Iterator[PciDevice]:
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        pci.driver = Listener()
        yield pci
        pci.driver = None


def health(pci: PciDevice) -> DeviceHealth:
    return pci.vdev.health


def told(pci: PciDevice) -> list[str]:
    assert isinstance(pci.driver, Listener)
    return pci.driver.calls


def write(pci: PciDevice, width: int, offset: int, value: int) -> None:
    {1: pci.config.write8, 2: pci.config.write16, 4: pci.config.write32}[width](offset, value)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_decoding(pci: PciDevice, width: int) -> None:
    mask = (1 << 8 * width) - 1
    write(pci, width, 4, COMMAND & ~MEMORY & mask)
    assert health(pci) is DeviceHealth.MEMORY_OFF
    write(pci, width, 4, COMMAND & ~MEMORY & mask)
    with pytest.raises(MemoryDisabledError):
        pci.bar(0).read32(0)
    write(pci, width, 4, COMMAND & mask)
    assert health(pci) is DeviceHealth.OK
    pci.bar(0).read32(0)


def test_a_write_beside_the_bit_changes_nothing(pci: PciDevice) -> None:
    assert pci.vdev.window is not None
    pci.config.write8(5, 0)
    pci.config.write16(2, 0xFFFF)
    pci.config.write32(0, 0)
    pci.config.write32(8, 0)
    pci.config.write16(4, COMMAND & ~int(Command.MASTER))
    assert (health(pci), pci.vdev.window.generation) == (DeviceHealth.OK, 0)


@pytest.mark.parametrize(("width", "offset"), [(1, POWER + 4), (2, POWER + 4), (4, POWER + 4)])
def test_power_states(pci: PciDevice, width: int, offset: int) -> None:
    for state in (1, 2):
        write(pci, width, offset, state)
        assert health(pci) is DeviceHealth.OK, "only D3 takes the memory away"
    write(pci, width, offset, 3)
    assert health(pci) is DeviceHealth.MEMORY_OFF
    pci.config.write16(4, COMMAND & ~MEMORY)
    write(pci, width, offset, 0)
    assert health(pci) is DeviceHealth.MEMORY_OFF, "decoding is off too"
    pci.config.write16(4, COMMAND)
    assert health(pci) is DeviceHealth.OK


@pytest.mark.parametrize(
    ("width", "offset", "value"),
    [
        (2, EXPRESS + 8, 1 << 15),
        (4, EXPRESS + 8, 1 << 15),
        (1, EXPRESS + 9, 1 << 7),
        (1, ADVANCED + 4, 1),
        (2, ADVANCED + 4, 1),
        (4, ADVANCED + 4, 1),
    ],
)
def test_function_level_reset(pci: PciDevice, device: ResettableDevice, width: int, offset: int, value: int) -> None:
    write(pci, width, offset, value)
    assert told(pci) == ["prepare", "done"]
    assert device.read(CONFIG, offset, width) == value.to_bytes(width, "little")
    assert (health(pci), int(pci.config.command)) == (DeviceHealth.OK, COMMAND)
    assert pci.vdev.window is not None
    assert pci.vdev.window.generation == 1


def test_bits_that_reset_nothing(pci: PciDevice, device: ResettableDevice) -> None:
    write(pci, 2, EXPRESS + 8, 0x7FFF)
    write(pci, 1, EXPRESS + 8, 0x80)
    write(pci, 2, EXPRESS + 10, 0x8000)
    write(pci, 1, ADVANCED + 5, 1)
    device.write(CONFIG, EXPRESS + 4, bytes(4))  # no function-level reset
    device.write(CONFIG, ADVANCED + 3, b"\x01")
    write(pci, 2, EXPRESS + 8, 1 << 15)
    write(pci, 1, ADVANCED + 4, 1)
    assert told(pci) == []


def test_a_capability_list_that_runs_in_a_circle(pci: PciDevice, device: ResettableDevice) -> None:
    device.write(CONFIG, ADVANCED + 1, bytes([POWER]))
    pci.config.write16(4, COMMAND & ~MEMORY)
    assert health(pci) is DeviceHealth.MEMORY_OFF
    pci.config.write16(POWER + 4, 0)
    pci.config.write16(4, COMMAND)
    assert health(pci) is DeviceHealth.OK


def test_a_peer_that_does_not_come_back_is_told(pci: PciDevice, kernel: FakeKernel) -> None:
    with pci.bar(0).map_for(pci.address_space) as mapping:
        pci.config.write16(4, COMMAND & ~MEMORY)
        assert (mapping.mapped, kernel.mappings) == (False, {})
        kernel.failing["VFIO_IOMMU_MAP_DMA"] = 14
        with pytest.raises(NotRestoredError, match="not for all of its peers") as caught:
            pci.config.write16(4, COMMAND)
        assert isinstance(caught.value.exceptions[0], VfioIoctlError)
        assert health(pci) is DeviceHealth.OK
        del kernel.failing["VFIO_IOMMU_MAP_DMA"]
        mapping.restore()
        assert list(kernel.mappings) == [mapping.iova]


def test_what_can_not_be_taken_from_peers_stays(pci: PciDevice, kernel: FakeKernel) -> None:
    with pci.bar(0).map_for(pci.address_space) as mapping:
        kernel.failing["VFIO_IOMMU_UNMAP_DMA"] = 22
        for change in (lambda: pci.config.write16(4, COMMAND & ~MEMORY), pci.reset):
            with pytest.raises(VfioIoctlError):
                change()
            assert (health(pci), int(pci.config.command)) == (DeviceHealth.OK, COMMAND)
            assert mapping.mapped
        del kernel.failing["VFIO_IOMMU_UNMAP_DMA"]


def test_waiting_for_the_configuration_inside_of_a_section_is_refused(pci: PciDevice) -> None:
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with pci.guard.alone():
            held.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(5)
    with pci.bar(0).access(), pytest.raises(LockOrderError, match="configuration"):
        pci.set_master(False)
    with pytest.raises(BusyError, match="another thread"), pci.guard.alone(0.01):
        raise AssertionError
    leave.set()
    thread.join(5)
    pci.set_master(False)
