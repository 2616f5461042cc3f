"""Resets that are refused, contended, or fail: which error comes, and what state everything is in."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.reset_helpers import Find, Recorder, acting, busy_reader, registers
from vfio_user import DeviceHealth, PciDevice, testing
from vfio_user.drivers.edu import IRQ_ACK, IRQ_RAISE, Edu
from vfio_user.errors import (
    BusyError,
    DeviceGoneError,
    LockOrderError,
    MemoryLockBusyError,
    NotOwnedError,
    NotRestoredError,
    ResetBlockedError,
    ResetFailedError,
    UnsupportedError,
    VfioIoctlError,
    ZappedError,
)
from vfio_user.pci import Command

ID = 0x010000ED


@pytest.fixture
def pci(vfio_device: Find) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address) as pci:
        yield pci


# -- contended


@pytest.mark.parametrize("how", ["function", "set"])
def test_a_reader_that_stays_is_named_and_nothing_changes(pci: PciDevice, how: str) -> None:
    calls: list[str] = []
    Recorder(pci, calls)
    pci.set_master(True)
    before = registers(pci)
    reset = pci.reset if how == "function" else pci.device_set.hot_reset
    with busy_reader(pci.bar(0)) as tid, pytest.raises(MemoryLockBusyError, match=rf"{pci.name}.*{tid}") as caught:
        reset(lock_timeout=0.2)
    assert [holder for holder, _ in caught.value.holders] == [tid]
    assert registers(pci) == before
    assert pci.vdev.health is DeviceHealth.OK
    assert pci.bar(0).read32(0) == ID
    assert calls == [f"prepare {pci.name}", f"done {pci.name}"], "whoever was told to stop is told to go on"
    pci.reset()
    pci.driver = None


def test_a_reader_of_one_device_holds_up_the_set_without_harm() -> None:
    addresses = [each.address for each in testing.devices("edu")[1:3]]
    with nothing_left(), vfio_user.open_all(addresses) as (first, second):
        with busy_reader(second.bar(0)) as tid:
            with pytest.raises(MemoryLockBusyError, match=second.name) as caught:
                first.device_set.hot_reset(lock_timeout=0.2)
            assert caught.value.holders[0][0] == tid
            assert first.bar(0).read32(0) == ID, "the lock that was taken first is released again"
        first.device_set.hot_reset()


def test_a_reset_in_ones_own_read_section_is_refused_at_once(pci: PciDevice) -> None:
    with pci.bar(0).access():
        for reset in (pci.reset, pci.device_set.hot_reset, pci.close):
            with pytest.raises(LockOrderError, match="read section"):
                reset()
    assert pci.vdev.health is DeviceHealth.OK
    assert pci.vdev.window is not None
    pci.vdev.window.lock_write(1)
    with pytest.raises(LockOrderError, match="comes first"):
        pci.reset()
    pci.vdev.window.unlock_write()


def test_two_resets_at_once_wait_for_each_other(vfio_device: Find) -> None:
    begun = threading.Event()

    def slow(pci: PciDevice) -> None:
        begun.set()
        time.sleep(0.5)
        vfio_user.PCI_OPS.reset(pci.vdev)

    with vfio_user.open(vfio_device("edu").address, ops=acting(slow)) as pci:
        thread = threading.Thread(target=pci.reset, name="the slow one")
        thread.start()
        assert begun.wait(5)
        with pytest.raises(BusyError, match="the slow one"):
            pci.reset(lock_timeout=0.05)
        pci.reset(lock_timeout=5)
        thread.join(5)
        assert pci.bar(0).read32(0) == ID


def test_the_kernel_is_asked_again_while_it_is_busy(vfio_device: Find) -> None:
    answers = [errno.EAGAIN, errno.EBUSY, errno.EAGAIN]

    def busy(pci: PciDevice) -> None:
        if answers:
            raise VfioIoctlError(answers.pop(), "VFIO_DEVICE_RESET", pci.name)
        vfio_user.PCI_OPS.reset(pci.vdev)

    def always_busy(pci: PciDevice, group_fds: Sequence[int]) -> None:
        raise VfioIoctlError(errno.EBUSY, "VFIO_DEVICE_PCI_HOT_RESET", pci.name)

    with vfio_user.open(vfio_device("edu").address, ops=acting(busy, always_busy)) as pci:
        assert pci.reset().attempts == 4
        before = registers(pci)
        with pytest.raises(BusyError, match="another process"):
            pci.device_set.hot_reset()
        assert registers(pci) == before
        assert (pci.vdev.health, pci.bar(0).read32(0)) == (DeviceHealth.OK, ID)


# -- refused


def test_a_device_on_the_root_bus_has_no_reset() -> None:
    address = testing.devices("edu")[-1].address
    with nothing_left(), vfio_user.open(address) as pci:
        assert pci.device_set.members == (pci,)
        with pytest.raises(UnsupportedError, match="root bus"):
            pci.device_set.plan()
        with pytest.raises(UnsupportedError, match="root bus"):
            pci.device_set.hot_reset()
        with pytest.raises(UnsupportedError, match="no reset method"):
            pci.reset()
        assert pci.bar(0).read32(0) == ID


def test_a_device_that_is_not_ours_is_named() -> None:
    mine, other = testing.devices("igb")
    calls: list[str] = []
    with nothing_left(), vfio_user.open(mine.address, mode="type1v2") as pci:
        Recorder(pci, calls)
        plan = pci.device_set.plan()
        assert not plan.possible
        assert [str(each.address) for each in plan.not_owned] == [other.address]
        assert f"open_all(['{mine.address}', '{other.address}'])" in plan.advice[0]
        assert "not ours" in str(plan)
        before = registers(pci)
        with pytest.raises(NotOwnedError, match="open_all") as caught:
            pci.device_set.hot_reset()
        assert caught.value.addresses == (other.address,)
        assert (registers(pci), calls) == (before, [])
        with vfio_user.open(other.address, mode="type1v2"):
            pci.device_set.hot_reset()
        pci.driver = None


def test_a_neighbour_without_a_driver_blocks() -> None:
    first, second = testing.devices("edu")[1:3]
    folder = Path(f"/sys/bus/pci/devices/{second.address}")
    with nothing_left(), vfio_user.open(first.address) as pci:
        (folder / "driver" / "unbind").write_text(second.address)
        try:
            plan = pci.device_set.plan()
            assert [str(each.address) for each in plan.blocking] == [second.address]
            with pytest.raises(ResetBlockedError, match=rf"{second.address} is bound to no driver") as caught:
                pci.device_set.hot_reset()
            assert caught.value.culprits == ((second.address, ""),)
            assert pci.bar(0).read32(0) == ID
        finally:
            Path("/sys/bus/pci/drivers_probe").write_text(second.address)
        assert pci.device_set.plan().possible
        pci.device_set.hot_reset()


def test_what_came_up_after_the_plan_is_an_error_too(vfio_device: Find) -> None:
    def refuse(pci: PciDevice, group_fds: Sequence[int]) -> None:
        vfio_user.PCI_OPS.reset_set(pci.vdev, ())  # no proof of ownership

    with vfio_user.open(vfio_device("edu").address, mode="type1v2", ops=acting(reset_set=refuse)) as pci:
        before = registers(pci)
        with pytest.raises(VfioIoctlError) as caught:
            pci.device_set.hot_reset()
        assert caught.value.errno == errno.EINVAL
        assert (registers(pci), pci.vdev.health, pci.bar(0).read32(0)) == (before, DeviceHealth.OK, ID)


# -- failed


@pytest.mark.parametrize("error", [VfioIoctlError(errno.ENOTTY, "VFIO_DEVICE_RESET"), RuntimeError("firmware")])
def test_a_reset_that_fails_leaves_the_device_off_until_one_succeeds(vfio_device: Find, error: Exception) -> None:
    broken = [True]
    calls: list[str] = []

    def fail(pci: PciDevice) -> None:
        if broken[0]:
            raise error
        vfio_user.PCI_OPS.reset(pci.vdev)

    with nothing_left(), vfio_user.open(vfio_device("edu").address, ops=acting(fail)) as pci:
        pci.set_master(True)
        view = pci.bar(0).view()
        with pci.irqs.msi.enable(1) as (vector,):
            Recorder(pci, calls)
            before = registers(pci)
            for _ in range(2):
                with pytest.raises(ResetFailedError, match="need another reset") as caught:
                    pci.reset()
                assert caught.value.addresses == (pci.name,)
                assert caught.value.__cause__ is error
                assert pci.vdev.health is DeviceHealth.NEEDS_RESET
                assert "needs reset" in repr(pci.vdev)
                with pytest.raises(ZappedError, match="needs another one"):
                    pci.bar(0).read32(0)
                assert bytes(view[:4]) == b"\xff" * 4
                assert not pci.config.command & (Command.MEMORY | Command.MASTER)
                pci.config.set_command(enable=int(Command.MEMORY))
                with pytest.raises(ZappedError):
                    pci.bar(0).read32(0)
                with pytest.raises(ResetFailedError):
                    pci.revive()
            broken[0] = False
            pci.reset()
            assert calls == [f"prepare {pci.name}"] * 3 + [f"done {pci.name}"]
            assert registers(pci) == before, "as it was before the first"
            assert (pci.vdev.health, pci.bar(0).read32(0)) == (DeviceHealth.OK, ID)
            pci.bar(0).write32(IRQ_RAISE, 1)
            assert vector.wait(2.0) == 1
            pci.bar(0).write32(IRQ_ACK, 1)
            pci.driver = None
        view.release()


def test_a_failed_function_reset_is_mended_by_a_hot_reset(vfio_device: Find) -> None:
    def fail(pci: PciDevice) -> None:
        raise VfioIoctlError(errno.ENOTTY, "VFIO_DEVICE_RESET", pci.name)

    with vfio_user.open(vfio_device("edu").address, ops=acting(fail)) as pci, Edu(pci) as edu:
        with pytest.raises(ResetFailedError):
            pci.reset()
        pci.device_set.hot_reset()
        assert edu.factorial(5) == 120


def test_a_device_with_a_failed_reset_can_be_closed(vfio_device: Find) -> None:
    def fail(pci: PciDevice) -> None:
        raise VfioIoctlError(errno.EIO, "VFIO_DEVICE_RESET", pci.name)

    with nothing_left():
        ops = acting(fail)
        with vfio_user.open(vfio_device("edu").address, ops=ops) as pci, Edu(pci), pytest.raises(ResetFailedError):
            pci.reset()
        with vfio_user.open(vfio_device("edu").address) as pci, Edu(pci) as edu:
            assert edu.factorial(4) == 24


def test_a_device_that_is_gone_after_the_reset(vfio_device: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    with vfio_user.open(vfio_device("edu").address, ops=acting(lambda pci: gone.append(pci))) as pci:
        gone: list[PciDevice] = []
        read = vfio_user.PCI_OPS.read

        def ones(vdev: vfio_user.VfioDevice, offset: int, size: int) -> bytes:
            return b"\xff" * size if gone else read(vdev, offset, size)

        import dataclasses

        pci.vdev.ops = dataclasses.replace(pci.vdev.ops, read=ones)
        with pytest.raises(DeviceGoneError, match="all-ones"):
            pci.reset()
        assert pci.vdev.health is DeviceHealth.GONE
        with pytest.raises(DeviceGoneError, match="does not answer"):
            pci.bar(0).read32(0)
        with pytest.raises(DeviceGoneError):
            pci.revive()
        gone.clear()
        pci.vdev.ops = vfio_user.PCI_OPS
        pci.reset()
        assert pci.bar(0).read32(0) == ID, "it came back"


# -- drivers that raise


@pytest.mark.parametrize("where", ["prepare", "done"])
def test_a_driver_that_raises_does_not_leave_others_half_reset(where: str) -> None:
    addresses = [each.address for each in testing.devices("edu")[1:3]]
    calls: list[str] = []
    with nothing_left(), vfio_user.open_all(addresses) as (first, second):
        bad, _ = Recorder(first, calls), Recorder(second, calls)
        bad.raises[where] = RuntimeError("bad driver")
        with pytest.raises(NotRestoredError, match="not all came back") as caught:
            first.device_set.hot_reset()
        assert caught.value.exceptions == (bad.raises[where],)
        assert sorted(calls) == sorted(f"{what} {name}" for what in ("prepare", "done") for name in addresses)
        for pci in (first, second):
            assert (pci.vdev.health, pci.bar(0).read32(0)) == (DeviceHealth.OK, ID)
            pci.driver = None


def test_an_interrupted_reset_puts_everything_back(vfio_device: Find) -> None:
    calls: list[str] = []

    def interrupt(pci: PciDevice) -> None:
        raise KeyboardInterrupt

    with vfio_user.open(vfio_device("edu").address, ops=acting(interrupt)) as pci:
        Recorder(pci, calls)
        before = registers(pci)
        with pytest.raises(KeyboardInterrupt):
            pci.reset()
        assert (registers(pci), pci.vdev.health, pci.bar(0).read32(0)) == (before, DeviceHealth.OK, ID)
        assert calls == [f"prepare {pci.name}", f"done {pci.name}"]
        pci.driver = None


# -- opening and closing


def test_first_and_last_of_a_set_are_told() -> None:
    import dataclasses

    calls: list[str] = []
    ops = dataclasses.replace(
        vfio_user.PCI_OPS,
        open_first=lambda vdev: calls.append(f"first {vdev.name}"),
        close_last=lambda vdev: calls.append(f"last {vdev.name}"),
    )
    one, two = (each.address for each in testing.devices("edu")[1:3])
    with vfio_user.open(one, ops=ops) as first:
        with vfio_user.open(two, ops=ops, address_space=first.address_space) as second:
            assert len(first.device_set.members) == 2
            first.vdev.user().__enter__()
            with pytest.raises(vfio_user.errors.DeadlineError):
                first.close(timeout=0.05)
            assert len(second.device_set.members) == 2
            first.vdev._leave()
        assert calls == [f"first {one}"]
    assert calls == [f"first {one}", f"last {one}"]


def test_a_forked_child_neither_resets_nor_hangs(pci: PciDevice) -> None:
    with pci.device_set.locked(1):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                pci.reset()
            except vfio_user.errors.ForkedError:
                pci.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pci.reset().devices == (pci.name,)
