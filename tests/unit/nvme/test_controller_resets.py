"""Resets of a controller, and commands that are late, on the model."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from vfio_user.drivers.nvme import (
    NvmeAbortedError,
    NvmeController,
    NvmeDeadlineError,
    NvmeFatalError,
    NvmeNotRunningError,
    NvmeStatusError,
)
from vfio_user.drivers.nvme.commands import flush, identify, read
from vfio_user.drivers.nvme.opcodes import AdminOpcode, Cns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.nvme.model import Model
    from vfio_user.drivers.nvme.commands import SubmissionEntry
    from vfio_user.pci.device import PciDevice

    Device = tuple[Model, PciDevice]


def is_io(qid: int, entry: SubmissionEntry) -> bool:
    return qid != 0


def is_admin(opcode: int) -> Callable[[int, SubmissionEntry], bool]:
    return lambda qid, entry: qid == 0 and entry.opcode == opcode


def test_a_reset_ends_what_is_in_flight_once_and_the_queues_work_again(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, io_queues=2) as ctrl, pci.dma_alloc(4096) as buffer:
        namespace = ctrl.namespaces[0]
        namespace.write(3, b"\x5a" * 512)
        queues = ctrl.io_queues
        model.hold = is_io
        ends: list[object] = []
        commands = [namespace.submit_read(buffer[:512], 3, queue=queues[n % 2]) for n in range(20)]
        for command in commands:
            command.add_done_callback(lambda each: ends.append(each.exception()))
        pci.reset()
        assert len(ends) == 20
        assert all(isinstance(end, NvmeAbortedError) for end in ends)
        for command in commands:
            with pytest.raises(NvmeAbortedError, match="being reset"):
                command.wait()
        model.hold = lambda qid, entry: False
        assert ctrl.state.name == "RUNNING"
        assert ctrl.io_queues == queues
        for queue in queues:
            assert namespace.read(3, 1, queue=queue) == b"\x5a" * 512


def test_what_was_completed_before_the_reset_counts_as_completed(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, interrupts=False) as ctrl:
        model.hold = lambda qid, entry: is_io(qid, entry) and entry.nsid == 2
        done, not_done = ctrl.io_queues[0].submit(flush(1)), ctrl.io_queues[0].submit(flush(2))
        ctrl.reset()
        assert done.result().ok
        with pytest.raises(NvmeAbortedError):
            not_done.result()


def test_commands_during_a_reset_are_refused_by_name(device: Device) -> None:
    _, pci = device
    with NvmeController(pci) as ctrl:
        ctrl.reset_prepare()
        assert ctrl.state.name == "RESETTING"
        with pytest.raises(NvmeNotRunningError, match="being reset"):
            ctrl.io_queues[0].submit(flush(1))
        with pytest.raises(NvmeNotRunningError, match="wait until the reset is over"):
            ctrl.smart()
        ctrl.reset_done()
        assert ctrl.io_queues[0].execute(flush(1)).ok


def test_threads_that_wait_are_told_of_a_reset(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.hold = is_io
        ends: list[str] = []

        def work() -> None:
            try:
                ctrl.namespaces[0].read(0, 1)
            except NvmeAbortedError:
                ends.append("aborted")

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        while ctrl.io_queues[0].num_in_flight < 5:
            time.sleep(0.001)
        pci.reset()
        for thread in threads:
            thread.join(10)
        assert ends == ["aborted"] * 5
        assert ctrl.bounce.num_taken == 0


def test_a_thread_that_waits_for_an_admin_command_does_not_hold_up_a_reset(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.hold = is_admin(AdminOpcode.CREATE_CQ)
        failed = threading.Event()

        def work() -> None:
            try:
                ctrl.create_io_queue()
            except NvmeAbortedError:
                failed.set()

        thread = threading.Thread(target=work)
        thread.start()
        while not model.held:
            time.sleep(0.001)
        model.hold = lambda qid, entry: False
        begin = time.monotonic()
        ctrl.reset()
        assert time.monotonic() - begin < 5
        thread.join(10)
        assert failed.is_set()
        assert len(ctrl.io_queues) == 1
        assert ctrl.io_queues[0].execute(flush(1)).ok


def test_a_controller_that_does_not_come_back_says_so(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        queue = ctrl.io_queues[0]
        model.never_ready = True
        with pytest.raises(NvmeDeadlineError, match="did not start"):
            pci.reset()
        assert ctrl.state.name == "FAILED"
        with pytest.raises(NvmeNotRunningError, match="did not come back"):
            queue.submit(flush(1))
        with pytest.raises(NvmeNotRunningError, match="failed"):
            ctrl.smart()
        model.never_ready = False
        ctrl.reset()
        assert queue.execute(flush(1)).ok


def test_fatal_then_reset(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.fatal = True
        model.hold = is_io
        with pytest.raises(NvmeFatalError) as caught:
            ctrl.namespaces[0].read(0, 1)
        assert "works again" in caught.value.__notes__[0]
        model.hold = lambda qid, entry: False
        assert ctrl.namespaces[0].read(0, 1) == bytes(512)


# -- deadlines


def test_a_blocking_call_aborts_what_is_late(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.hold, model.aborts = is_io, True
        with pytest.raises(NvmeDeadlineError, match=r"not completed within 0\.05 s") as caught:
            ctrl.namespaces[0].read(0, 1, timeout=0.05)
        assert caught.value.__notes__ == ["The commands were aborted."]
        assert ctrl.io_queues[0].num_in_flight == 0
        assert ctrl.bounce.num_taken == 0
        assert ctrl.state.name == "RUNNING"


def test_a_blocking_call_resets_when_an_abort_does_not_help(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.drivers.nvme.controller._ABORT_GRACE", 0.05)
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.hold = is_io
        with pytest.raises(NvmeDeadlineError) as caught:
            ctrl.namespaces[0].write(0, bytes(512), timeout=0.05)
        assert "works again" in caught.value.__notes__[0]
        assert ctrl.bounce.num_taken == 0
        model.hold = lambda qid, entry: False
        ctrl.namespaces[0].write(0, bytes(512))


def test_a_command_that_is_late_can_be_waited_for_again(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.hold = is_io
        command = ctrl.io_queues[0].submit(flush(1))
        with pytest.raises(NvmeDeadlineError, match="wait\\(\\) again"):
            command.wait(0)
        assert not ctrl.abort(command)
        model.release()
        assert command.wait().ok


def test_an_answer_that_comes_late_does_not_land_in_anothers_memory(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, timeout=0.05) as ctrl:
        model.hold = is_admin(AdminOpcode.GET_LOG_PAGE)
        with pytest.raises(NvmeDeadlineError):
            ctrl.smart()
        assert ctrl.pages.num_taken == 1
        model.hold = lambda qid, entry: False
        assert ctrl.smart().temperature_kelvin == 0x143
        model.release()
        ctrl.admin.poll()
        assert ctrl.pages.num_taken == 0


def test_an_admin_error_has_its_name(device: Device) -> None:
    _, pci = device
    with NvmeController(pci) as ctrl, pytest.raises(NvmeStatusError, match="Invalid Command Opcode") as caught:
        ctrl.admin.execute(identify(Cns.CONTROLLER)._replace(opcode=0x7F))
    assert "opcode 0x7f, queue 0" in str(caught.value)


def test_lba_out_of_range_comes_from_the_controller_too(device: Device) -> None:
    _, pci = device
    with NvmeController(pci) as ctrl, pci.dma_alloc(4096) as buffer:
        with pytest.raises(NvmeStatusError, match="LBA Out of Range") as caught:
            ctrl.io_queues[0].execute(read(1, 1 << 40, 1), buffer[:512])
        assert (caught.value.sct, caught.value.sc, caught.value.dnr) == (0, 0x80, True)


@pytest.mark.parametrize("opcode", [AdminOpcode.IDENTIFY, AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ])
def test_no_doorbell_rings_before_the_controller_knows_the_queue(device: Device, opcode: int) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        queue = ctrl.io_queues[0]
        refused: list[int] = []

        def meddle(qid: int, entry: SubmissionEntry) -> int:
            if qid == 0 and entry.opcode == opcode:
                with pytest.raises(NvmeNotRunningError):
                    queue.submit(flush(1))
                refused.append(opcode)
            return 0

        model.status = meddle
        ctrl.reset()
        assert refused == [opcode]
        assert queue.execute(flush(1)).ok
