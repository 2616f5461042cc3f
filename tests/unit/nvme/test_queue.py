"""Queue pairs: everything that is submitted is accounted for exactly once, whatever the controller does."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.nvme.model import model_device
from vfio_user.drivers.nvme import (
    Command,
    NvmeAbortedError,
    NvmeController,
    NvmeDeadlineError,
    NvmeError,
    NvmeQueueFullError,
    NvmeStatusError,
    NvmeUnknownCompletionError,
    SubmissionEntry,
)
from vfio_user.drivers.nvme.commands import flush, read, write
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, BusyError, IovaError, ZappedError

if TYPE_CHECKING:
    from tests.unit.nvme.model import Model
    from vfio_user.pci.device import PciDevice

    Device = tuple[Model, PciDevice]
    Setting = tuple[Model, PciDevice, NvmeController]


def hold_io(qid: int, entry: SubmissionEntry) -> bool:
    return qid != 0


class Accounting(RuleBasedStateMachine):
    """Random submissions, answers in any order, polls, lies and resets; the books must balance."""

    def __init__(self) -> None:
        super().__init__()
        self.context = model_device()
        self.model, self.pci = self.context.__enter__()
        self.ctrl = NvmeController(self.pci, io_entries=8, interrupts=False)
        self.ctrl.start()
        self.model.hold = hold_io
        self.queue = self.ctrl.io_queues[0]
        self.expected: dict[Command, int | None] = {}
        self.ended: list[Command] = []
        self.open: list[Command] = []
        self.lied = False

    @rule(count=st.integers(1, 4))
    def submit(self, count: int) -> None:
        entries = [(flush(1), None)] * count
        if self.lied:
            with pytest.raises(NvmeUnknownCompletionError):
                self.queue.submit_many(entries)
        elif count > 7 - len(self.open):
            with pytest.raises(NvmeQueueFullError):
                self.queue.submit_many(entries)
        else:
            for command in self.queue.submit_many(entries):
                command.add_done_callback(self.ended.append)
                self.open.append(command)
                self.expected[command] = None

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.model.held) - 1))
        status = data.draw(st.sampled_from([0, 0, 0x80]))
        _, entry = self.model.held.pop(index)
        (command,) = [each for each in self.open if each.command_id == entry.command_id and self.waiting(each)]
        self.expected[command] = status
        self.model.complete(1, entry.command_id, status=status)

    def waiting(self, command: Command) -> bool:
        return self.expected[command] is None

    @rule()
    def poll(self) -> None:
        answered = [each for each in self.open if not self.waiting(each)]
        assert self.queue.poll() == len(answered)
        self.settle(answered)

    @rule(data=st.data())
    def lie(self, data: st.DataObject) -> None:
        """A completion that nobody asked for: an identifier of the past, or of a queue that is not ours."""
        self.poll()
        live = {each.command_id for each in self.open}
        past = {each.command_id for each in self.expected} - live
        command_id = data.draw(st.sampled_from(sorted(past | {0xFFFF})))
        self.model.complete(1, command_id)
        with pytest.raises(NvmeUnknownCompletionError, match=f"{command_id:#x}"):
            self.queue.poll()
        self.lied = True

    @rule()
    def reset(self) -> None:
        answered = [each for each in self.open if not self.waiting(each)]
        self.ctrl.reset()
        self.settle(answered)
        for command in self.open:
            assert isinstance(command.exception(), NvmeAbortedError)
        self.open.clear()
        self.lied = False

    def settle(self, answered: list[Command]) -> None:
        for command in answered:
            self.open.remove(command)
            if self.expected[command] == 0:
                assert command.result().ok
            else:
                assert isinstance(command.exception(), NvmeStatusError)

    @invariant()
    def the_books_balance(self) -> None:
        assert self.queue.num_in_flight == len(self.open)
        assert len(self.ended) == len(set(self.ended)) == len(self.expected) - len(self.open)
        assert all(command.done() for command in self.ended)

    def teardown(self) -> None:
        self.ctrl.stop()
        self.open.clear()
        self.the_books_balance()
        self.context.__exit__(None, None, None)


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# -- submitting


def test_thousands_of_commands_answered_in_any_order(setting: Setting) -> None:
    model, pci, ctrl = setting
    order = random.Random(1)
    queue = ctrl.io_queues[0]
    for lba in range(64):
        model.disk[lba * 512 : lba * 512 + 512] = bytes([lba]) * 512
    model.hold = hold_io
    with pci.dma_alloc(15 * 512) as buffer:
        for turn in range(200):
            lbas = [order.randrange(64) for _ in range(15)]
            commands = [queue.submit(read(1, lba, 1), buffer[n * 512 : n * 512 + 512]) for n, lba in enumerate(lbas)]
            model.release(order)
            queue.wait(commands, 5)
            assert [buffer.view[n * 512] for n in range(15)] == lbas, turn
    assert queue.num_in_flight == 0


def test_a_batch_rings_once_and_is_all_or_nothing(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.bells.clear()
    queue.wait(queue.submit_many([(flush(1), None)] * 10))
    # A polled queue tells the controller of taken completions only when it could run out of room.
    polled = queue.vector is None
    assert model.bells == [(2, 10), (3, 10)][: 1 if polled else 2]
    model.zapped = True
    with pytest.raises(ZappedError):
        queue.submit_many([(flush(1), None)] * 10)
    assert queue.num_in_flight == 0
    model.zapped = False
    with pytest.raises(BoundsError):
        queue.submit_many([(flush(1), None), (SubmissionEntry(256), None)])
    assert queue.num_in_flight == 0
    assert queue.submit_many([]) == []
    model.bells.clear()
    queue.wait(queue.submit_many([(flush(1), None)] * 3))
    assert model.bells == ([(2, 13)] if polled else [(2, 13), (3, 13)])
    model.bells.clear()
    queue.wait(queue.submit_many([(flush(1), None)] * 3))
    assert model.bells == ([(3, 13), (2, 0)] if polled else [(2, 0), (3, 0)])


def test_a_full_queue_says_so_and_goes_on(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    commands = [queue.submit(flush(1)) for _ in range(15)]
    with pytest.raises(NvmeQueueFullError, match="poll\\(\\) or wait") as caught:
        queue.submit(flush(1))
    assert isinstance(caught.value, BusyError)
    with pytest.raises(NvmeDeadlineError, match="stayed full"):
        queue.wait_for_room(0.02)
    model.release()
    queue.wait_for_room()
    queue.wait(commands)
    assert queue.num_free == 15


def test_data_that_can_not_be_transferred_is_refused(setting: Setting) -> None:
    _, pci, ctrl = setting
    queue = ctrl.io_queues[0]
    with pci.dma_alloc(1 << 20) as buffer:
        for data, error, words in (
            (bytearray(512), IovaError, "dma_alloc"),
            (buffer[2:514], AlignmentError, "multiple of 4"),
            (buffer, BoundsError, "131072 at most"),
            (object(), ArgumentError, "object is no memory"),
            (buffer.view[::2], ArgumentError, "contiguous"),
            (buffer.view.toreadonly(), ArgumentError, "read-only"),
            ([buffer[:4096], buffer[8192:8196], buffer[4096:8192]], AlignmentError, "inside of a page"),
        ):
            with pytest.raises(error, match=words):
                queue.submit(read(1, 0, 1), data)  # type: ignore[arg-type]
        part = buffer[:512]
    with pytest.raises(IovaError, match="closed"):
        queue.submit(read(1, 0, 1), part)
    assert queue.num_in_flight == 0


def test_all_kinds_of_dma_memory(setting: Setting) -> None:
    model, pci, ctrl = setting
    queue = ctrl.io_queues[0]
    model.disk[:] = random.Random(2).randbytes(len(model.disk))
    with pci.dma_alloc(64 << 10) as buffer, pci.address_space.pool(4096) as pool:
        array = buffer.array("<u4", (4, 1024))
        queue.execute(read(1, 8, 8), array[2])
        assert array[2].tobytes() == model.disk[8 * 512 : 16 * 512]
        queue.execute(read(1, 16, 9), [buffer[1024:4096], buffer[12288:13824]])
        assert bytes(buffer.view[1024:4096]) == bytes(model.disk[16 * 512 : 22 * 512])
        assert bytes(buffer.view[12288:13824]) == bytes(model.disk[22 * 512 : 25 * 512])
        with pool.take() as small:
            queue.execute(read(1, 3, 1), small[:512])
            assert bytes(small.view[:512]) == bytes(model.disk[3 * 512 : 4 * 512])
        own = buffer.array()[8192:12288]
        own.flags.writeable = False
        queue.execute(write(1, 0, 8), own, writes=False)
        assert model.disk[:4096] == own.tobytes()


# -- completing


@pytest.mark.parametrize("kind", ["twice", "of another queue", "never submitted"])
def test_an_unknown_completion_is_named_and_the_others_are_taken_in(setting: Setting, kind: str) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    first, second = queue.submit(flush(1)), queue.submit(flush(1))
    if kind == "twice":
        model.complete(1, first.command_id)
        model.complete(1, first.command_id)
    elif kind == "of another queue":
        model.complete(1, first.command_id)
        model.complete(1, second.command_id, sqid=7)
    else:
        model.complete(1, 0x0F0F)
        model.complete(1, first.command_id)
    with pytest.raises(NvmeUnknownCompletionError, match="not in flight"):
        queue.poll()
    assert first.result().ok
    assert not second.done()
    with pytest.raises(NvmeUnknownCompletionError, match=r"reset\(\)"):
        queue.submit(flush(1))
    with pytest.raises(NvmeDeadlineError):
        second.wait(0.01)
    ctrl.reset()
    assert isinstance(second.exception(), NvmeAbortedError)
    model.hold = lambda qid, entry: False
    assert queue.execute(flush(1)).ok


def test_a_handle_tells_its_outcome_as_often_as_asked(setting: Setting) -> None:
    model, _, ctrl = setting
    model.hold = hold_io
    command = ctrl.io_queues[0].submit(flush(1))
    assert not command.done()
    assert "in flight" in repr(command)
    for ask in (command.result, command.exception):
        with pytest.raises(NvmeError, match=r"wait\(\)"):
            ask()
    model.status = lambda qid, entry: 0x4280
    model.release()
    for _ in range(2):
        with pytest.raises(NvmeStatusError, match="Write Fault"):
            command.wait()
    model.status = lambda qid, entry: 0
    assert command.done()
    assert "Write Fault" in repr(command)
    assert command.queue is ctrl.io_queues[0]


def test_callbacks_run_once_and_their_errors_come_out(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    commands = [queue.submit(flush(1)) for _ in range(3)]
    seen: list[Command] = []

    def fail(command: Command) -> None:
        raise RuntimeError(command.name)

    for command in commands:
        command.add_done_callback(seen.append)
    commands[1].add_done_callback(fail)
    model.release()
    with pytest.raises(ExceptionGroup, match="callbacks") as caught:
        queue.poll()
    assert caught.group_contains(RuntimeError)
    assert seen == commands
    commands[0].add_done_callback(seen.append)
    assert seen[-1] is commands[0]
    assert len(seen) == 4


def test_a_callback_may_submit(setting: Setting) -> None:
    _, _, ctrl = setting
    queue = ctrl.io_queues[0]
    count = 0

    def again(command: Command) -> None:
        nonlocal count
        count += 1
        if count < 100:
            queue.submit(flush(1)).add_done_callback(again)

    queue.submit(flush(1)).add_done_callback(again)
    while count < 100:
        queue.poll()
    assert queue.num_in_flight == 0


def test_memory_is_held_while_the_device_may_use_it(setting: Setting) -> None:
    model, pci, ctrl = setting
    model.hold = hold_io
    with pci.dma_alloc(4096) as buffer:
        array = buffer.array()
        held = numpy.array([array], dtype=object)
        command = ctrl.io_queues[0].submit(read(1, 0, 1), array[:512])
        assert command._data is not None
        model.release()
        command.wait()
        assert command._data is None
        assert held[0] is not None
