"""The rings of a queue pair, and commands as arrays: many by one call, and no Python object for any of them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from vfio_user._mmio import RingPair
from vfio_user.drivers.nvme.commands import CQE_SIZE, SQE_SIZE, Completion
from vfio_user.drivers.nvme.errors import (
    NvmeAbortedError,
    NvmeDeadlineError,
    NvmeNotRunningError,
    NvmeQueueFullError,
    NvmeUnknownCompletionError,
)
from vfio_user.drivers.nvme.memory import view_of
from vfio_user.drivers.nvme.status import ABORTED_BY_HOST, Status
from vfio_user.drivers.tasks import TaskWaiter
from vfio_user.drivers.waiting import Waiter, deadline_of
from vfio_user.errors import VfioError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.nvme.command import Command
    from vfio_user.drivers.nvme.memory import Data, Doorbells, QueueMemory

__all__ = ["ADVICE", "QueueRings"]

#: What to do about commands that are late.
ADVICE = (
    "the controller may still access the memory of commands in flight: wait() again, "
    "NvmeController.abort() them, or NvmeController.reset()"
)
#: Where things are in the entries (NVMe Base 2.0, 3.3.3): identifier, phase tag, status.
_LAYOUT = {
    "submission_size": SQE_SIZE,
    "completion_size": CQE_SIZE,
    "id_at": 2,
    "done_id_at": 12,
    "phase_at": 14,
    "phase_mask": 1,
    "error_mask": 0x0FFE,
}
_SQID_AT = 10
_ABORTED = Status.from_int(ABORTED_BY_HOST)
_ENDED = Completion(0, 0, 0, 0, 0, ABORTED_BY_HOST << 1).pack()
#: A reaper looks for so long before it does what waiting takes.
_FIRST_LOOK = 2e-3


class QueueRings:
    """The half of a `QueuePair` that moves arrays of commands.

    `submit_rows` and `submit_batch` hand over any number of commands with one ring of the doorbell, each with a number
    of the caller's; `reap` gives the numbers of those that are done back, with their completions, and `reap_each` calls
    a function for each. Entries and completions are buffers: numpy arrays of `submission_dtype` and `completion_dtype`,
    or plain bytes. Nothing looks at the addresses in the entries: an IOVA that is not mapped ends in an error status.

    A command that a reset or a removal ends comes out of `reap` as well, with the status "Command Aborted By Host".

    Lifetime:
        See `QueuePair`.
    Locking:
        Any thread may call anything. The rings have a lock of their own, in C.
    """

    def __init__(
        self,
        qid: int,
        entries: int,
        memory: QueueMemory,
        *,
        doorbells: Doorbells,
        bell_offsets: tuple[int, int],
        vector: IrqVector | None,
        adaptive: bool,
        timeout: float,
        diagnose: Callable[[], None],
    ) -> None:
        self.qid = qid
        """Queue id; 0 is the admin queue."""
        self.entries = entries
        """Entries of each of the two rings."""
        self.vector = vector
        """The queue's interrupt vector; `None` when it is polled."""
        self.timeout = timeout
        """Default deadline of waits, seconds."""
        self._rings = RingPair(
            memory.submissions.view,
            memory.completions.view,
            getattr(doorbells, "mmio", None) or doorbells,
            *bell_offsets,
            _LAYOUT | {"entries": entries},
            match=(_SQID_AT, qid),
            # With interrupts the controller may wait for the doorbell before it sends the next.
            lazy=vector is None,
        )
        # Bound here: looking them up would cost as much as several commands.
        self._submit, self._reap = self._rings.submit, self._rings.reap
        # Most commands of a polled queue come soon; what waiting takes otherwise would make them late.
        self._look = _FIRST_LOOK if vector is None else 0.0
        self._lock = threading.Lock()
        self._stopped: str | None = "it is not created yet"
        self._fault: str | None = None
        self._waiter = Waiter(
            self._lock,
            vector,
            poll=self.poll,
            diagnose=diagnose,
            spin=lambda seconds: self._rings.spin(seconds, False),
            adaptive=adaptive,
        )
        self._tasks = TaskWaiter(vector, poll=self.poll, diagnose=diagnose)

    @property
    def num_free(self) -> int:
        """Number of commands that can be submitted before the queue is full."""
        return self._rings.num_free

    @property
    def num_in_flight(self) -> int:
        """Number of commands that were submitted and whose outcome was not taken."""
        return self.entries - 1 - self._rings.num_free

    @property
    def num_failed(self) -> int:
        """Number of commands that completed with an error status, ever."""
        return self._rings.num_failed

    def submit_batch(self, entries: Data, numbers: Data, *, keep: object = None) -> None:
        """Hand commands to the controller with one ring of the doorbell: all of them, or none when it raises.

        Args:
            entries: 64 bytes for each command; the identifiers are filled in here.
            numbers: the caller's 64-bit number for each, which `reap` gives back.
            keep: held until all of them were reaped: what owns their memory.

        Raises:
            NvmeQueueFullError: there is no room for all of them.
            NvmeNotRunningError: the controller is resetting, failed or removed.
            NvmeUnknownCompletionError: the queue met a completion that nobody asked for.
            BoundsError: fewer entries than numbers.
            ZappedError: device memory is taken away at the moment.
        """
        if not self._submit(entries, numbers, None, keep, False):
            raise self._refusal(view_of(numbers).nbytes // 8)

    def submit_rows(self, table: Data, rows: Data, count: int | None = None, *, keep: object = None) -> None:
        """Hand over commands that stand ready in a table, by their row numbers, which `reap` gives back.

        So what `reap` has filled can be submitted again as it is. See `submit_batch`.

        Args:
            table: 64 bytes for each row.
            rows: 64-bit numbers of rows; one row may be given several times.
            count: how many of them; by default all.
            keep: held until all of them were reaped.

        Raises:
            BoundsError: there is no such row; otherwise as `submit_batch`.
        """
        if not self._submit(table, rows, count, keep, True):
            raise self._refusal(view_of(rows).nbytes // 8 if count is None else count)

    def reap(self, numbers: Data, completions: Data | None = None, timeout: float = 0, *, least: int = 1) -> int:
        """Take the outcomes of commands that `submit_batch` or `submit_rows` handed over; give how many there were.

        Args:
            numbers: gets the caller's 64-bit number of each; as many as fit are taken.
            completions: gets 16 bytes for each; left out, `num_failed` tells whether one has failed.
            timeout: seconds to wait until there is one; 0 only looks, and gives 0 when there is none.
            least: on a polled queue, how many are worth a call: it looks up to 2 ms for so many, or for all that are in
                flight. Fewer doorbells, and less Python, for each command.

        Raises:
            NvmeDeadlineError: there was none within ``timeout``. The commands are still in flight.
            NvmeUnknownCompletionError: the controller completed a command that is not in flight. Others come out by
                the next call.
            NvmeFatalError: the controller stopped with a fatal status.
            DeviceGoneError: the controller does not answer any more.
            ZappedError: device memory is taken away at the moment; nothing is lost.
        """
        look = self._look
        count = self._reap(numbers, completions, least, look if timeout > look else timeout)
        return count or self._patiently(lambda: self._reap(numbers, completions), timeout)

    def _patiently(self, reap: Callable[[], int], timeout: float) -> int:
        """Reap again, and wait for something to reap if that is wanted."""
        self.poll()
        count = reap()
        if count or not timeout:
            return count
        deadline = deadline_of(timeout)
        while not (count := reap()):
            # Another thread may take what this one was woken for.
            if not self._waiter.wait(self._any_ready, deadline) and time.monotonic() >= deadline:
                raise NvmeDeadlineError(f"queue {self.qid} completed nothing within {timeout:g} s; {ADVICE}")
        return count

    def reap_each(self, callback: Callable[[int, int], object], timeout: float = 0, *, least: int = 1) -> int:
        """Call ``callback(number, status)`` for each command that is done; give how many there were.

        With a ``timeout`` it waits until there is one, or ``least``; see `reap`. The status is 0 for success, else
        twice the 15 bits that `Status.from_int` decodes. A callback may submit; what is done meanwhile is for the next
        call. When a callback raises, those not called yet come then as well.

        Raises:
            NvmeUnknownCompletionError, ZappedError: see `reap`.
        """
        look = self._look
        count = self._rings.each(callback, least, look if timeout > look else timeout)
        return count or self._patiently(lambda: self._rings.each(callback), timeout)

    async def reap_async(self, numbers: Data, completions: Data | None = None, timeout: float | None = None) -> int:
        """Let the event loop run until there are outcomes; see `reap`.

        Raises:
            NvmeDeadlineError: none came within ``timeout`` seconds, by default those of the queue.
            As `reap` does.
        """
        timeout = self.timeout if timeout is None else timeout
        deadline = deadline_of(timeout)
        while not (count := self.reap(numbers, completions)):
            if not await self._tasks.wait_until(self._any_ready, self._waiter.listen, deadline):
                raise NvmeDeadlineError(f"queue {self.qid} completed nothing within {timeout:g} s; {ADVICE}")
        return count

    def poll(self) -> int:
        """Take in all completions that the controller has written, without waiting; give how many commands ended so.

        Those of arrays are left for `reap`, and not counted.

        Raises:
            NvmeUnknownCompletionError: one was for a command that is not in flight. The others are taken in.
            ZappedError: device memory is taken away at the moment.
            ExceptionGroup: callbacks of commands raised.
        """
        finished, problem = self._take_in()
        _run_callbacks(finished)
        if problem is not None:
            raise problem
        return len(finished)

    # -- inside

    def _wait_idle(self, deadline: float) -> None:
        if not self._waiter.wait(lambda: self._rings.num_flying == 0, deadline):
            raise NvmeDeadlineError(f"queue {self.qid} still has commands in flight; {ADVICE}")

    def _any_ready(self) -> bool:
        return self._rings.num_ready > 0

    def _take_in(self) -> tuple[list[Command], VfioError | None]:
        """Take completions in; give the commands that are done, and what went wrong on the way."""
        problem: VfioError | None = None
        try:
            self._rings.scan()
        except VfioError as exc:
            problem = exc
        with self._lock:
            finished: list[Command] = []
            for command, completion in self._rings.take():
                self._settle(command, Completion.unpack_from(completion))
                finished.append(command)
            stray = self._rings.take_stray()
            if stray is not None:
                problem = self._note_stray(Completion.unpack_from(stray))
            self._tell(bool(finished))
        return finished, problem

    def _settle(self, command: Command, completion: Completion, aborted: str | None = None) -> None:
        """Tell a command what became of it; the caller has the lock."""
        error = NvmeAbortedError(f"{command.name} was in flight: {aborted}") if aborted else None
        command._finish(None if aborted else completion, error)

    def _note_stray(self, stray: Completion) -> NvmeUnknownCompletionError:
        self._fault = (
            f"queue {self.qid} got a completion for command {stray.command_id:#x} of queue {stray.sqid}, "
            f"which is not in flight ({stray.status})"
        )
        return NvmeUnknownCompletionError(self._fault)

    def _tell(self, finished: bool) -> None:
        """Wake who waits; the caller has the lock."""
        if finished or self._any_ready():
            self._waiter.notify()

    def _refusal(self, wanted: int) -> VfioError:
        """Say why commands were not taken."""
        if self._stopped is not None:
            return NvmeNotRunningError(f"queue {self.qid} takes no commands: {self._stopped}")
        if self._rings.strayed:
            if self._fault is None:
                self._take_in()
            return NvmeUnknownCompletionError(f"{self._fault}; call NvmeController.reset() to start over")
        free = self._rings.num_free
        return NvmeQueueFullError(
            f"queue {self.qid} has room for {free} more commands, not {wanted} ({self.num_in_flight} in flight): "
            "poll() or wait for some first (reap() those of arrays), or ask for a deeper queue"
        )

    # -- what the controller does with a queue

    def _stop(self, reason: str) -> None:
        """Refuse further commands; those in flight go on."""
        with self._lock:
            self._stopped = reason
            self._rings.stop()

    def _abort_all(self, reason: str) -> int:
        """End everything in flight, once the controller can't touch its memory any more; give the number.

        What the controller had completed by then is taken in as such.
        """
        finished, _ = self._take_in()
        with self._lock:
            ended = self._rings.end_all(_ENDED)
            for command, outcome in self._rings.take():
                completion = Completion.unpack_from(outcome)
                self._settle(command, completion, reason if completion.status == _ABORTED else None)
                finished.append(command)
            self._tell(True)
        _run_callbacks(finished)
        return ended

    def _clear(self) -> None:
        """Empty the rings, before the controller is told of the queue (again)."""
        with self._lock:
            assert self._stopped is not None
            self._rings.reset()
            self._fault = None

    def _start(self) -> None:
        """Take commands, now that the controller knows the queue: a doorbell rung before would be lost."""
        with self._lock:
            self._stopped = None
            self._rings.start()


def _run_callbacks(finished: list[Command]) -> None:
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
