"""The reset transaction: its order, and that every failure on the way ends in a state that is named."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from tests.unit.pci.reset_fakes import COMMAND, Faulty, ResettableDevice
from vfio_user import DeviceHealth, PciDevice
from vfio_user.device.memory import locked
from vfio_user.errors import (
    DeviceGoneError,
    NotOwnedError,
    NotRestoredError,
    ResetFailedError,
    VfioError,
    VfioIoctlError,
    ZappedError,
)

SECOND = "0000:01:00.1"
SIGNATURE = b"\xed\x00\x00\x01"


@pytest.fixture
def device(kernel: FakeKernel, tree: FakeSysfs) -> Iterator[ResettableDevice]:
    """A device in group 7 that can be reset."""
    tree.add(ADDRESS, driver="vfio-pci", group=7, vfio_device="vfio0")
    device = kernel.devices[ADDRESS] = ResettableDevice()
    device.write(0, 0, SIGNATURE)
    yield device
    device.close()


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture
def pci(device: ResettableDevice, faulty: Faulty) -> Iterator[PciDevice]:
    with vfio_user.open(ADDRESS, mode="type1v2", ops=faulty.ops()) as pci:
        yield pci


class Listener:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def reset_prepare(self) -> None:
        self.calls.append("prepare")

    def reset_done(self) -> None:
        self.calls.append("done")


def resets(pci: PciDevice) -> tuple[Callable[[], object], ...]:
    return (pci.reset, pci.device_set.hot_reset)


@pytest.mark.parametrize("which", [0, 1])
def test_order(pci: PciDevice, device: ResettableDevice, faulty: Faulty, which: int) -> None:
    pci.guard.memory_on()  # finds the capabilities, which is done once
    pci.driver = Listener(faulty.calls)
    with pci.irqs.msi.enable(1):
        faulty.calls.clear()
        resets(pci)[which]()
        assert faulty.calls == [
            "prepare",
            "read 0x0",
            "irqs 1 off",
            "write 0x4 0x100",
            "reset",
            "read 0x0",
            "write 0x4 0x103",
            "irqs 1 on",
            "write 0x4 0x107",
            "done",
        ]
    assert (device.resets, device.hot_resets) == ((1, []) if which == 0 else (0, [1]))
    assert pci.bar(0).read32(0) == 0x010000ED
    pci.driver = None


def test_order_with_peers(pci: PciDevice, kernel: FakeKernel, faulty: Faulty) -> None:
    """Nobody may still write to what is taken away, or do so before it is back: bus mastering is off for longer."""
    pci.guard.memory_on()
    with pci.bar(0).map_for(pci.address_space):
        kernel.asked.clear()
        faulty.calls.clear()
        pci.reset()
        assert faulty.calls == [
            "read 0x0",
            "write 0x4 0x103",
            "write 0x4 0x100",
            "reset",
            "read 0x0",
            "write 0x4 0x103",
            "write 0x4 0x107",
        ]
        assert [name for name in kernel.asked if "DMA" in name] == ["VFIO_IOMMU_UNMAP_DMA", "VFIO_IOMMU_MAP_DMA"]
        assert kernel.asked.index("VFIO_IOMMU_UNMAP_DMA") < kernel.asked.index("VFIO_DEVICE_RESET")


def count_calls(pci: PciDevice, faulty: Faulty, reset: Callable[[], object]) -> int:
    faulty.calls.clear()
    reset()
    return len(faulty.calls)


@pytest.mark.parametrize("which", [0, 1])
def test_a_failure_anywhere_ends_in_a_state_that_is_named(
    pci: PciDevice, device: ResettableDevice, faulty: Faulty, which: int
) -> None:
    """Let each call in turn fail: the device then works, or says that it does not, and the next reset mends it."""
    reset, bar = resets(pci)[which], pci.bar(0)
    view = bar.view()
    calls: list[str] = []
    pci.driver = Listener(calls)
    with pci.irqs.msi.enable(1) as (vector,):
        pci.guard.memory_on()
        number = count_calls(pci, faulty, reset)
        outcomes = set()
        for fail_at in range(1, number + 1):
            calls.clear()
            faulty.calls.clear()
            faulty.fail_at = fail_at
            with pytest.raises(VfioError) as caught:
                reset()
            faulty.fail_at = None
            outcomes.add((type(caught.value), pci.vdev.health))
            assert calls.count("prepare") == 1
            assert_free(pci)
            if pci.vdev.health is DeviceHealth.OK:
                assert calls == ["prepare", "done"]
                assert bar.read32(0) == 0x010000ED
                assert bytes(view[:4]) == SIGNATURE
                assert int(pci.config.command) == COMMAND
            else:
                assert calls == ["prepare"]
                assert pci.vdev.health is DeviceHealth.NEEDS_RESET
                with pytest.raises(ZappedError):
                    bar.read32(0)
                assert bytes(view[:4]) == b"\xff" * 4
            reset()
            assert pci.vdev.health is DeviceHealth.OK
            assert calls[-1] == "done"
            assert int(pci.config.command) == COMMAND
            assert bytes(view[:4]) == SIGNATURE
            pci.irqs.msi.trigger(0)
            assert vector.wait(1) == 1
        assert {health for _, health in outcomes} == {DeviceHealth.OK, DeviceHealth.NEEDS_RESET}
        assert (NotRestoredError, DeviceHealth.OK) in outcomes, "an interrupt that is not armed is told"
    view.release()
    pci.driver = None


def assert_free(pci: PciDevice) -> None:
    """Make sure that another thread can have every lock that a reset takes."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            with pci.device_set.locked(0.5), pci.guard.alone(0.5), locked([pci.vdev.memory], 0.5):
                pass
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert caught == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENODEV, errno.EPERM])
def test_what_the_kernel_refuses_changes_nothing(pci: PciDevice, faulty: Faulty, code: int) -> None:
    faulty.failing["reset"] = VfioIoctlError(code, "VFIO_DEVICE_RESET", pci.name)
    for reset in resets(pci):
        with pytest.raises(VfioIoctlError) as caught:
            reset()
        assert caught.value.errno == code
        assert (pci.vdev.health, pci.bar(0).read32(0), int(pci.config.command)) == (
            DeviceHealth.OK,
            0x010000ED,
            COMMAND,
        )


def test_a_base_address_that_does_not_come_back(pci: PciDevice, device: ResettableDevice, faulty: Faulty) -> None:
    device.write(CONFIG, 0x10, b"\x00\x00\x10\xfe")
    read = vfio_user.PCI_OPS.read

    def lose(vdev: vfio_user.VfioDevice, offset: int, size: int) -> bytes:
        data = read(vdev, offset, size)
        lost = device.resets and size == 64
        return data[:0x10] + b"\0\0\0\0" + data[0x14:] if lost else data

    import dataclasses

    pci.vdev.ops = dataclasses.replace(vfio_user.PCI_OPS, read=lose)
    with pytest.raises(ResetFailedError, match="BAR 0") as caught:
        pci.reset()
    assert caught.value.addresses == (ADDRESS,)
    assert pci.vdev.health is DeviceHealth.NEEDS_RESET


def test_fields_of_the_header_are_put_back(pci: PciDevice, device: ResettableDevice) -> None:
    device.write(CONFIG, 0x0C, b"\x10\x20")
    device.write(CONFIG, 0x3C, b"\x0b")

    def reset(vdev: vfio_user.VfioDevice) -> None:
        device.write(CONFIG, 0x0C, b"\0\0")
        device.write(CONFIG, 0x3C, b"\0")
        device.write(CONFIG, 4, b"\0\0")

    import dataclasses

    pci.vdev.ops = dataclasses.replace(vfio_user.PCI_OPS, reset=reset)
    pci.reset()
    assert device.read(CONFIG, 0x0C, 2) == b"\x10\x20"
    assert device.read(CONFIG, 0x3C, 1) == b"\x0b"
    assert int(pci.config.command) == COMMAND


def test_one_of_two_devices_is_gone(kernel: FakeKernel, device: ResettableDevice, tree: FakeSysfs) -> None:
    tree.add(SECOND, driver="vfio-pci", group=7, vfio_device="vfio1")
    other = kernel.devices[SECOND] = ResettableDevice()
    other.write(0, 0, SIGNATURE)
    device.dependents = other.dependents = [(7, 1, 0), (7, 1, 1)]
    with vfio_user.open_all([ADDRESS, SECOND], mode="type1v2") as (first, second):
        (report,) = vfio_user.hot_reset([first, second])
        assert report.devices == (ADDRESS, SECOND)

        def fall_off(vdev: vfio_user.VfioDevice, group_fds: object) -> None:
            other.write(CONFIG, 0, b"\xff" * 64)

        import dataclasses

        first.vdev.ops = dataclasses.replace(vfio_user.PCI_OPS, reset_set=fall_off)
        calls: list[str] = []
        first.driver, second.driver = Listener(calls), Listener(calls)
        with pytest.raises(DeviceGoneError, match=SECOND):
            first.device_set.hot_reset()
        assert (first.vdev.health, second.vdev.health) == (DeviceHealth.OK, DeviceHealth.GONE)
        assert first.bar(0).read32(0) == 0x010000ED
        with pytest.raises(DeviceGoneError):
            second.bar(0).read32(0)
        assert calls == ["prepare", "prepare", "done"], "the driver of the one that is gone is not told to go on"
        first.driver = second.driver = None
    other.close()


def test_devices_of_others_are_not_reset(pci: PciDevice, device: ResettableDevice, tree: FakeSysfs) -> None:
    tree.add(SECOND, driver="vfio-pci", group=8, vfio_device="vfio1")
    device.dependents = [(7, 1, 0), (8, 1, 1)]
    calls: list[str] = []
    pci.driver = Listener(calls)
    with pytest.raises(NotOwnedError, match=SECOND):
        pci.device_set.hot_reset()
    assert (calls, device.hot_resets) == ([], [])
    pci.driver = None
