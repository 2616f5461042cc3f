"""Resets of real devices: what is promised about them when all goes well."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.reset_helpers import Find, Recorder, acting, registers
from vfio_user import DeviceHealth, PciDevice, ResetReport, testing
from vfio_user.drivers import edu as registers_of
from vfio_user.drivers.edu import Edu
from vfio_user.drivers.nvme import NvmeController
from vfio_user.errors import UnsupportedError, ZappedError
from vfio_user.memory import ZapReason
from vfio_user.pci import Command

HOW = ["function", "set"]


def reset(pci: PciDevice, how: str) -> ResetReport:
    return pci.reset() if how == "function" else pci.device_set.hot_reset()


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pci(vfio_device: Find, reset_mode: str) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=reset_mode) as pci:
        yield pci


def test_registers_are_read_through_the_same_views_afterwards(pci: PciDevice, how: str) -> None:
    bar = pci.bar(0)
    view, address = bar.view(), bar.mmio.address if bar.mmio is not None else 0
    array = view.cast("I")
    for _ in range(3):
        assert array[0] == 0x010000ED
        report = reset(pci, how)
        assert report.devices == (pci.name,)
        assert bar.mmio is not None
        assert bar.mmio.address == address
        assert (array[0], bar.read32(0)) == (0x010000ED, 0x010000ED)
        assert pci.vdev.health is DeviceHealth.OK
    array.release()
    view.release()


def test_memory_reads_all_ones_in_between(vfio_device: Find, how: str) -> None:
    seen: list[object] = []
    views: list[memoryview] = []

    def look(pci: PciDevice) -> None:
        seen.append(views[0][:4].tolist())
        views[0][4] = 1  # goes nowhere
        seen.append(pci.vdev.health)
        with pytest.raises(ZappedError, match="being reset") as caught:
            threading_call(lambda: pci.bar(0).read32(0))
        seen.append(caught.value.reason)
        command = pci.config.command
        seen.append(bool(command & (Command.MEMORY | Command.IO | Command.MASTER)))

    def function_reset(pci: PciDevice) -> None:
        look(pci)
        vfio_user.PCI_OPS.reset(pci.vdev)
        seen.append(views[0][:4].tolist())

    def hot_reset(pci: PciDevice, group_fds: Sequence[int]) -> None:
        look(pci)
        assert len(group_fds) == (0 if pci.vdev.iommufd else 1)
        vfio_user.PCI_OPS.reset_set(pci.vdev, group_fds)
        seen.append(views[0][:4].tolist())

    with vfio_user.open(vfio_device("edu").address, ops=acting(function_reset, hot_reset)) as pci:
        views.append(pci.bar(0).view().cast("I"))
        pci.set_master(True)
        reset(pci, how)
        ones = [0xFFFFFFFF] * 4
        assert seen == [ones, DeviceHealth.RESETTING, ZapReason.RESET, False, ones]
        assert views.pop()[0] == 0x010000ED
        assert pci.config.command & Command.MASTER


def threading_call(call: object) -> None:
    """Run in another thread, and raise here what it raises there: a writer itself may read."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            call()  # type: ignore[operator]  # a callable
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    if caught:
        raise caught[0]


def test_configuration_is_what_it_was(pci: PciDevice, how: str) -> None:
    for enable, disable in ((Command.MASTER, 0), (0, Command.MASTER), (Command.MASTER, Command.IO)):
        pci.config.set_command(enable=int(enable), disable=int(disable))
        pci.config.write8(0x3C, 0x5A)
        before = registers(pci)
        reset(pci, how)
        assert registers(pci) == before


def test_interrupts_arrive_on_the_same_eventfds(pci: PciDevice, how: str) -> None:
    pci.set_master(True)
    with pci.irqs.msi.enable(1) as (vector,):
        fd = vector.fileno()
        for _ in range(2):
            reset(pci, how)
            assert vector.fileno() == fd
            pci.bar(0).write32(registers_of.IRQ_RAISE, 1)
            assert vector.wait(2.0) == 1
            pci.bar(0).write32(registers_of.IRQ_ACK, 1)
            pci.irqs.msi.trigger(0)
            assert vector.wait(2.0) == 1


def test_level_interrupts_and_their_resample_event_survive(pci: PciDevice, how: str) -> None:
    bar = pci.bar(0)
    with pci.irqs.intx.enable(1) as (vector,):
        again = pci.irqs.intx.resample()
        reset(pci, how)
        for _ in range(2):
            bar.write32(registers_of.IRQ_RAISE, 1)
            assert vector.wait(2.0) == 1
            bar.write32(registers_of.IRQ_ACK, 1)
            again.signal()


def test_err_and_req_stay_armed(vfio_device: Find, how: str) -> None:
    with vfio_user.open(vfio_device("nvme").address) as pci, pci.irqs.req.enable(1) as (req,):
        reset(pci, how)
        pci.irqs.req.trigger(0)
        assert req.wait(1.0) == 1


def test_driver_is_told_and_dma_works(vfio_device: Find, reset_mode: str, how: str) -> None:
    with (
        nothing_left(),
        vfio_user.open(vfio_device("edu").address, mode=reset_mode) as pci,
        Edu(pci) as edu,
        edu.alloc() as buffer,
    ):
        for turn in range(3):
            reset(pci, how)
            assert edu.factorial(5 + turn) in (120, 720, 5040)
            buffer[:8] = b"turn %3d" % turn
            edu.copy_to_device(buffer[:8])
            edu.copy_from_device(buffer[100:108])
            assert bytes(buffer[100:108]) == b"turn %3d" % turn


def test_nvme_works_again_without_being_reopened(vfio_device: Find, how: str) -> None:
    with nothing_left(), vfio_user.open(vfio_device("nvme").address) as pci, NvmeController(pci) as controller:
        namespace = controller.namespaces[0]
        data = random.Random(1).randbytes(64 * 512)
        namespace.write(100, data)
        for _ in range(3):
            report = reset(pci, how)
            assert namespace.read(100, 64) == data
        assert report.reset_seconds < report.seconds


def test_hooks_are_called_in_order_and_without_locks(vfio_device: Find, how: str) -> None:
    calls: list[str] = []
    with vfio_user.open(vfio_device("edu").address) as pci:
        Recorder(pci, calls)
        reset(pci, how)
        assert calls == [f"prepare {pci.name}", f"done {pci.name}"]
        pci.driver = None


def test_report_names_every_phase(pci: PciDevice, how: str) -> None:
    report = reset(pci, how)
    names = [phase.name for phase in report.phases]
    for earlier, later in (
        ("drivers: reset_prepare", "locks"),
        ("locks", "memory taken away"),
        ("memory taken away", "interrupts and decoding off, D0"),
        ("interrupts and decoding off, D0", "reset"),
        ("reset", "configuration put back"),
        ("configuration put back", "interrupts on"),
        ("interrupts on", "memory given back"),
        ("memory given back", "drivers: reset_done"),
    ):
        assert names.index(earlier) < names.index(later)
    assert report.attempts >= 1
    for name in names:
        assert name in str(report)
    told = report.to_json()
    assert told["devices"] == [pci.name]
    assert told["seconds"] == pytest.approx(sum(phase.seconds for phase in report.phases))


def test_both_functions_of_a_slot_are_reset_together() -> None:
    addresses = [each.address for each in testing.devices("edu")[1:3]]
    calls: list[str] = []
    with nothing_left(), vfio_user.open_all(addresses) as (first, second):
        assert first.device_set is second.device_set
        assert first.device_set.members == (first, second)
        views = [pci.bar(0).view().cast("I") for pci in (first, second)]
        with first.irqs.msi.enable(1) as (one,), second.irqs.msi.enable(1) as (two,):
            for pci in (first, second):
                Recorder(pci, calls)
                pci.set_master(True)
            (report,) = vfio_user.hot_reset([second, first])
            assert report.devices == tuple(addresses)
            assert calls == [
                f"prepare {first.name}",
                f"prepare {second.name}",
                f"done {second.name}",
                f"done {first.name}",
            ]
            assert [int(view[0]) for view in views] == [0x010000ED] * 2
            for pci, vector in ((first, one), (second, two)):
                pci.bar(0).write32(registers_of.IRQ_RAISE, 1)
                assert vector.wait(2.0) == 1
                pci.bar(0).write32(registers_of.IRQ_ACK, 1)
                pci.driver = None
        del views


def test_a_sibling_that_is_not_open_does_not_hinder() -> None:
    first, second = testing.devices("edu")[1:3]
    with vfio_user.open(first.address) as pci:
        plan = pci.device_set.plan()
        assert plan.possible
        assert [each.verdict for each in plan.affected] == ["open", "ours, not open"]
        assert second.address in str(plan)
        assert pci.device_set.hot_reset().devices == (first.address,)


def test_functions_of_a_slot_with_two_groups_are_reset_together() -> None:
    addresses = [each.address for each in testing.devices("igb")]
    with nothing_left(), vfio_user.open_all(addresses, mode="type1v2") as (first, second):
        plan = first.device_set.plan()
        assert len(plan.groups) == 2
        assert plan.possible
        before = [registers(pci) for pci in (first, second)]
        report = second.device_set.hot_reset()
        assert report.devices == tuple(addresses)
        assert [registers(pci) for pci in (first, second)] == before
        first.reset()
        second.reset()
        assert [pci.bar(0).read32(8) != 0xFFFFFFFF for pci in (first, second)] == [True, True]


def test_functions_that_have_no_reset_of_their_own() -> None:
    for device in testing.devices("edu")[1:3]:
        calls: list[str] = []
        with vfio_user.open(device.address) as pci:
            Recorder(pci, calls)
            with pytest.raises(UnsupportedError, match=r"can't be reset alone"):
                pci.reset()
            assert calls == []
            assert pci.bar(0).read32(0) == 0x010000ED
            pci.driver = None


def test_several_sets_are_reset_one_after_the_other() -> None:
    addresses = [testing.devices("edu")[0].address, testing.device("nvme").address]
    with vfio_user.open_all(addresses) as devices:
        reports = vfio_user.hot_reset(devices)
        assert [report.devices for report in reports] == [(address,) for address in addresses]
        (again,) = vfio_user.hot_reset(devices[0])
        assert again.devices == (addresses[0],)
