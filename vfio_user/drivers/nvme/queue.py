"""A queue pair: commands go in, completions come out, and each command is accounted for exactly once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.command import Command
from vfio_user.drivers.nvme.errors import (
    NvmeAbortedError,
    NvmeDeadlineError,
    NvmeNotRunningError,
    NvmeQueueFullError,
    NvmeUnknownCompletionError,
)
from vfio_user.drivers.nvme.prp import prp_fields
from vfio_user.drivers.nvme.ring import CompletionRing, SubmissionRing
from vfio_user.drivers.nvme.table import CommandTable
from vfio_user.drivers.nvme.tasks import TaskWaiter
from vfio_user.drivers.waiting import Waiter, deadline_of
from vfio_user.errors import VfioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.nvme.commands import Completion, SubmissionEntry
    from vfio_user.drivers.nvme.memory import Data, Doorbells, MemoryFinder, QueueMemory

__all__ = ["QueuePair"]


class QueuePair:
    """A submission queue with its completion queue; number 0 is the admin queue.

    `submit` returns a `Command` at once; `submit_many` rings the doorbell once for many. `poll` takes completions
    in, and is all that a polling program needs; `Command.wait` and ``await`` do it for you.

    Lifetime:
        Made and ended by its `NvmeController`. A reset of the device ends the commands in flight with
        `NvmeAbortedError`; the queue works again after it.
    Locking:
        Thread-safe. One lock covers the rings and the table of commands; it is not held while waiting, nor while
        callbacks run.
    """

    def __init__(
        self,
        qid: int,
        entries: int,
        memory: QueueMemory,
        *,
        doorbells: Doorbells,
        bell_offsets: tuple[int, int],
        finder: MemoryFinder,
        page_size: int,
        max_transfer: int,
        vector: IrqVector | None,
        timeout: float,
        diagnose: Callable[[], None],
    ) -> None:
        """Lay the rings over their memory; the controller is told by `NvmeController`.

        Args:
            qid: queue id, the same for both queues of the pair.
            entries: entries of each ring, 2 to 65536; one less can be in flight.
            memory: rings and PRP lists.
            doorbells: register access to BAR 0.
            bell_offsets: of the submission tail and the completion head doorbell.
            finder: resolves the memory of commands.
            page_size: CC.MPS in bytes.
            max_transfer: most bytes of one command.
            vector: the queue's interrupt; `None` makes waiting poll.
            timeout: default deadline of waits, seconds.
            diagnose: raises when the controller is fatal or gone; asked when a wait makes no progress.
        """
        self.qid = qid
        """Queue id; 0 is the admin queue."""
        self.entries = entries
        """Entries of each of the two rings."""
        self.max_transfer = max_transfer
        """Most bytes that one command may transfer."""
        self.vector = vector
        """The queue's interrupt vector; `None` when it is polled."""
        self.timeout = timeout
        """Default deadline of waits, seconds."""
        self._memory = memory
        self._doorbells = doorbells
        self._tail_bell, self._head_bell = bell_offsets
        self._finder = finder
        self._page_size = page_size
        self._lock = threading.Lock()
        self._submissions = SubmissionRing(memory.submissions.view, entries)
        self._completions = CompletionRing(memory.completions.view, entries)
        self._table: CommandTable[Command] = CommandTable(entries - 1)
        self._stopped: str | None = "it is not created yet"
        self._fault: str | None = None
        self._waiter = Waiter(self._lock, vector, poll=self.poll, diagnose=diagnose)
        self._tasks = TaskWaiter(vector, poll=self.poll, diagnose=diagnose)

    @property
    def iovas(self) -> tuple[int, int]:
        """Where the controller finds the submission and the completion ring."""
        return self._memory.submissions.iova, self._memory.completions.iova

    @property
    def num_free(self) -> int:
        """Number of commands that `submit` takes before the queue is full."""
        return self._table.num_free

    @property
    def num_in_flight(self) -> int:
        """Number of commands that were submitted and are not done."""
        return self._table.num_in_flight

    def submit(
        self, entry: SubmissionEntry, data: Data | Sequence[Data] | None = None, *, writes: bool = True
    ) -> Command:
        """Hand a command to the controller and return at once.

        Args:
            entry: the command; its identifier, and with ``data`` its PRP fields, are filled in here.
            data: memory to transfer, mapped for the device, starting at a multiple of 4 bytes; or several pieces,
                which but for the first start and but for the last end on a page. It is held until the command is done.
            writes: whether the device writes to it; a read-only buffer is refused then.

        Raises:
            NvmeQueueFullError: all entries are in flight.
            NvmeNotRunningError: the controller is resetting, failed or removed.
            NvmeUnknownCompletionError: the queue met a completion that nobody asked for.
            BoundsError: more data than `max_transfer`, or a field does not fit.
            AlignmentError: the data does not start or end where PRPs need it.
            IovaError: the data is not mapped for the device.
            ZappedError: device memory is taken away at the moment.
        """
        return self.submit_many([(entry, data)], writes=writes)[0]

    def submit_many(
        self,
        commands: Iterable[tuple[SubmissionEntry, Data | Sequence[Data] | None]],
        *,
        writes: bool = True,
    ) -> list[Command]:
        """Hand several commands to the controller with one ring of the doorbell; see `submit`.

        Either all of them are handed over or, when an exception comes, none.
        """
        ready = [
            (entry, *self._finder.pages(data, self._page_size, self.max_transfer, writable=writes))
            for entry, data in commands
        ]
        with self._lock:
            self._require_running(len(ready))
            tail = self._submissions.tail
            added: list[Command] = []
            try:
                for entry, keep, pages in ready:
                    added.append(self._put(entry, keep, pages))
                if added:
                    self._doorbells.write32(self._tail_bell, self._submissions.tail)
            except BaseException:
                # The doorbell did not ring, so the controller knows of none of them.
                self._submissions.rewind(tail)
                for command in added:
                    self._table.take(command.command_id)
                raise
            return added

    def poll(self) -> int:
        """Take in all completions that the controller has written, without waiting; give their number.

        Raises:
            NvmeUnknownCompletionError: one was for a command that is not in flight. The others are taken in.
            ZappedError: device memory is taken away at the moment.
            ExceptionGroup: callbacks of commands raised.
        """
        with self._lock:
            finished, problem = self._reap()
            if finished:
                self._waiter.notify()
        self._run_callbacks(finished)
        if problem is not None:
            raise problem
        return len(finished)

    def wait(self, commands: Sequence[Command], timeout: float | None = None) -> None:
        """Block until all of ``commands`` are done; their outcomes are theirs to tell.

        Args:
            commands: commands of this queue.
            timeout: seconds for all of them together; by default `timeout`.

        Raises:
            NvmeDeadlineError: not all were done in time.
            NvmeFatalError: the controller stopped with a fatal status.
            DeviceGoneError: the controller does not answer any more.
        """
        timeout = self.timeout if timeout is None else timeout
        if not self._waiter.wait(_all_done(commands), deadline_of(timeout)):
            _raise_late(commands, timeout)

    async def wait_async(self, commands: Sequence[Command], timeout: float | None = None) -> None:
        """Let the event loop run until all of ``commands`` are done; see `wait`."""
        timeout = self.timeout if timeout is None else timeout
        if not await self._tasks.wait(commands, deadline_of(timeout)):
            _raise_late(commands, timeout)

    def wait_for_room(self, timeout: float | None = None) -> None:
        """Block until `submit` would find room for a command.

        Raises:
            NvmeDeadlineError: the queue stayed full for ``timeout`` seconds, by default `timeout`.
            NvmeFatalError: the controller stopped with a fatal status.
            DeviceGoneError: the controller does not answer any more.
        """
        timeout = self.timeout if timeout is None else timeout
        if not self._waiter.wait(lambda: self._table.num_free > 0, deadline_of(timeout)):
            raise NvmeDeadlineError(f"queue {self.qid} stayed full for {timeout:g} s; {_ADVICE}")

    def execute(
        self,
        entry: SubmissionEntry,
        data: Data | Sequence[Data] | None = None,
        *,
        writes: bool = True,
        timeout: float | None = None,
    ) -> Completion:
        """Submit a command and wait for it; see `submit` and `Command.wait`."""
        return self.submit(entry, data, writes=writes).wait(timeout)

    # -- submitting

    def _require_running(self, wanted: int) -> None:
        if self._stopped is not None:
            raise NvmeNotRunningError(f"queue {self.qid} takes no commands: {self._stopped}")
        if self._fault is not None:
            raise NvmeUnknownCompletionError(f"{self._fault}; call NvmeController.reset() to start over")
        if wanted > self._table.num_free:
            raise NvmeQueueFullError(
                f"queue {self.qid} has room for {self._table.num_free} more commands, not {wanted} "
                f"({self._table.num_in_flight} in flight): poll() or wait for some first, or ask for a deeper queue"
            )

    def _put(self, entry: SubmissionEntry, keep: object, pages: list[int]) -> Command:
        place = self._table.peek()
        assert place is not None  # there was room
        slot, command_id = place
        prp1, prp2 = entry.prp1, entry.prp2
        if pages:
            start = slot * self._memory.prp_stride
            lists = self._memory.prp_lists
            prp1, prp2, content = prp_fields(pages, lists.iova + start, self._memory.prp_stride, self._page_size)
            lists.view[start : start + len(content)] = content
        self._submissions.put(entry, command_id, prp1, prp2)
        command = Command(self, entry.opcode, command_id, keep)
        self._table.add(command)
        return command

    # -- completing

    def _reap(self) -> tuple[list[Command], VfioError | None]:
        """Take completions in under the lock; give the commands that are done, and what went wrong on the way."""
        finished: list[Command] = []
        problem: VfioError | None = None
        looked_at = 0
        while looked_at < self.entries:
            completion = self._completions.take()
            if completion is None:
                break
            looked_at += 1
            command = self._table.take(completion.command_id) if completion.sqid == self.qid else None
            if command is None:
                self._fault = (
                    f"queue {self.qid} got a completion for command {completion.command_id:#x} of queue "
                    f"{completion.sqid}, which is not in flight ({completion.status})"
                )
                problem = NvmeUnknownCompletionError(self._fault)
                continue
            command._finish(completion, None)
            finished.append(command)
        # A controller that is stopped does not want to know, and one that is being reset can't be told.
        if looked_at and self._stopped is None:
            try:
                self._doorbells.write32(self._head_bell, self._completions.head)
            except VfioError as exc:
                problem = problem or exc
        return finished, problem

    def _when_done(self, command: Command, callback: Callable[[Command], object]) -> bool:
        """Note a callback, unless the command is done already."""
        with self._lock:
            if command.done():
                return False
            if command._callbacks is None:
                command._callbacks = []
            command._callbacks.append(callback)
            return True

    def _run_callbacks(self, finished: list[Command]) -> None:
        errors: list[Exception] = []
        for command in finished:
            callbacks, command._callbacks = command._callbacks, None
            for callback in callbacks or ():
                try:
                    callback(command)
                except Exception as exc:
                    errors.append(exc)
        if errors:
            raise ExceptionGroup("callbacks of completed commands raised", errors)

    # -- what the controller does with a queue

    def _stop(self, reason: str) -> None:
        """Refuse further commands; those in flight go on."""
        with self._lock:
            self._stopped = reason

    def _abort_all(self, reason: str) -> int:
        """End everything in flight, once the controller can't touch its memory any more; give the number.

        What the controller had completed by then is taken in as such.
        """
        with self._lock:
            finished, _ = self._reap()
            ended = self._table.take_all()
            for command in ended:
                command._finish(None, NvmeAbortedError(f"{command.name} was in flight: {reason}"))
            self._waiter.notify()
        self._run_callbacks(finished + ended)
        return len(ended)

    def _clear(self) -> None:
        """Empty the rings, before the controller is told of the queue (again)."""
        with self._lock:
            assert self._stopped is not None
            assert self._table.num_in_flight == 0
            self._submissions.reset()
            self._completions.reset()
            self._fault = None

    def _start(self) -> None:
        """Take commands, now that the controller knows the queue: a doorbell rung before would be lost."""
        with self._lock:
            self._stopped = None

    def __repr__(self) -> str:
        how = "polled" if self.vector is None else "interrupts"
        state = f" stopped: {self._stopped}" if self._stopped else ""
        return f"<QueuePair {self.qid} {self.num_in_flight}/{self.entries - 1} in flight {how}{state}>"


_ADVICE = (
    "the controller may still access the memory of commands in flight: wait() again, "
    "NvmeController.abort() them, or NvmeController.reset()"
)


def _all_done(commands: Sequence[Command]) -> Callable[[], bool]:
    """Make a check that looks at each command that is done once only."""
    remaining = list(commands)

    def check() -> bool:
        while remaining and remaining[-1].done():
            remaining.pop()
        return not remaining

    return check


def _raise_late(commands: Sequence[Command], timeout: float) -> None:
    late = [command.name for command in commands if not command.done()]
    if late:
        more = f" and {len(late) - 1} more" if len(late) > 1 else ""
        raise NvmeDeadlineError(f"{late[0]}{more}: not completed within {timeout:g} s; {_ADVICE}")
