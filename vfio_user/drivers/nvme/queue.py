"""A queue pair: commands go in, completions come out, and each command is accounted for exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.command import Command
from vfio_user.drivers.nvme.errors import NvmeDeadlineError
from vfio_user.drivers.nvme.prp import prp_fields
from vfio_user.drivers.nvme.rings import ADVICE, QueueRings
from vfio_user.drivers.waiting import deadline_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.nvme.commands import Completion, SubmissionEntry
    from vfio_user.drivers.nvme.memory import Data, Doorbells, MemoryFinder, QueueMemory

__all__ = ["QueuePair"]


class QueuePair(QueueRings):
    """A submission queue with its completion queue; number 0 is the admin queue.

    `submit` returns a `Command` at once; `submit_many` rings the doorbell once for many. `poll` takes completions
    in, and is all that a polling program needs; `Command.wait` and ``await`` do it for you. Both kinds of commands,
    these and the arrays of `QueueRings`, may be in flight together.

    Lifetime:
        Made and ended by its `NvmeController`. A reset of the device ends the commands in flight with
        `NvmeAbortedError`; the queue works again after it.
    Locking:
        Thread-safe. No lock is held while waiting, nor while callbacks run.
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
        adaptive: bool = False,
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
            adaptive: spin a little before sleeping on the interrupt.
            timeout: default deadline of waits, seconds.
            diagnose: raises when the controller is fatal or gone; asked when a wait makes no progress.
        """
        super().__init__(
            qid,
            entries,
            memory,
            doorbells=doorbells,
            bell_offsets=bell_offsets,
            vector=vector,
            adaptive=adaptive,
            timeout=timeout,
            diagnose=diagnose,
        )
        self.max_transfer = max_transfer
        """Most bytes that one command may transfer."""
        self._memory = memory
        self._finder = finder
        self._page_size = page_size
        self._free_lists = list(range(entries - 1))  # places for PRP lists; no command needs more than one

    @property
    def iovas(self) -> tuple[int, int]:
        """Where the controller finds the submission and the completion ring."""
        return self._memory.submissions.iova, self._memory.completions.iova

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
            added: list[Command] = []
            rows: list[bytes] = []
            try:
                for entry, keep, pages in ready:
                    added.append(Command(self, entry.opcode, keep))
                    rows.append(self._row(added[-1], entry, pages))
                ids = self._rings.submit_for(b"".join(rows), added)
                if ids is False:
                    raise self._refusal(len(added))
            except BaseException:
                for command in added:
                    self._give_back(command)
                raise
            for command, command_id in zip(added, ids, strict=True):
                command.command_id = command_id
            return added

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
        if not self._waiter.wait(lambda: self.num_free > 0, deadline_of(timeout)):
            raise NvmeDeadlineError(f"queue {self.qid} stayed full for {timeout:g} s; {ADVICE}")

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

    # -- inside

    def _row(self, command: Command, entry: SubmissionEntry, pages: list[int]) -> bytes:
        """Make the 64 bytes of a command, and its PRP list if it needs one."""
        if not pages:
            return entry.pack()
        lists, stride = self._memory.prp_lists, self._memory.prp_stride
        start = 0
        if len(pages) > 2:
            if not self._free_lists:
                raise self._refusal(1)
            command._list = self._free_lists.pop()
            start = command._list * stride
        prp1, prp2, content = prp_fields(pages, lists.iova + start, stride, self._page_size)
        lists.view[start : start + len(content)] = content
        return entry._replace(prp1=prp1, prp2=prp2).pack()

    def _give_back(self, command: Command) -> None:
        """Let the place of a command's PRP list be used again."""
        if command._list is not None:
            self._free_lists.append(command._list)
            command._list = None

    def _settle(self, command: Command, completion: Completion, aborted: str | None = None) -> None:
        super()._settle(command, completion, aborted)
        self._give_back(command)

    def _when_done(self, command: Command, callback: Callable[[Command], object]) -> bool:
        """Note a callback, unless the command is done already."""
        with self._lock:
            if command.done():
                return False
            if command._callbacks is None:
                command._callbacks = []
            command._callbacks.append(callback)
            return True

    def __repr__(self) -> str:
        how = "polled" if self.vector is None else "interrupts"
        state = f" stopped: {self._stopped}" if self._stopped else ""
        return f"<QueuePair {self.qid} {self.num_in_flight}/{self.entries - 1} in flight {how}{state}>"


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
        raise NvmeDeadlineError(f"{late[0]}{more}: not completed within {timeout:g} s; {ADVICE}")
