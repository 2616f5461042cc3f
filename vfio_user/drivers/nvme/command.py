"""A command in flight, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.errors import NvmeError, NvmeStatusError
from vfio_user.drivers.nvme.opcodes import opcode_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from vfio_user.drivers.nvme.commands import Completion
    from vfio_user.drivers.nvme.queue import QueuePair

__all__ = ["Command"]


class Command:
    """A command that was submitted: a future that its queue fulfils, exactly once.

    Wait with `wait`, with ``await``, or look at `done` while somebody calls `QueuePair.poll`. What comes out is the
    controller's `Completion`, or `NvmeStatusError`, or `NvmeAbortedError` when a reset came first.

    Lifetime:
        Holds the memory of the command's data until it is done. Dropping the handle does not end the command.
    Locking:
        All methods may be called from any thread; callbacks run in the thread that finds the completion, with no lock
        held.
    """

    __slots__ = ("_callbacks", "_completion", "_data", "_error", "_list", "_queue", "command_id", "opcode")

    def __init__(self, queue: QueuePair, opcode: int, data: object) -> None:
        self._queue = queue
        self.opcode = opcode
        """Opcode of the command."""
        self.command_id = 0
        """Its identifier within the queue, told by the queue; given to another command once this one is done."""
        self._list: int | None = None
        self._data = data
        self._completion: Completion | None = None
        self._error: NvmeError | None = None
        self._callbacks: list[Callable[[Command], object]] | None = None

    @property
    def queue(self) -> QueuePair:
        """The queue that it was submitted to."""
        return self._queue

    @property
    def name(self) -> str:
        """The command in words: ``"read, queue 1, command 7"``."""
        operation = opcode_name(self.opcode, admin=self._queue.qid == 0)
        return f"{operation}, queue {self._queue.qid}, command {self.command_id:#x}"

    def done(self) -> bool:
        """Tell whether the command has ended, one way or another; never looks at the device."""
        return self._completion is not None or self._error is not None

    def exception(self) -> NvmeError | None:
        """Give the error of a command that is done; `None` when it succeeded.

        Raises:
            NvmeError: it is still in flight.
        """
        if self._error is not None:
            return self._error
        if self._completion is None:
            raise NvmeError(f"{self.name} is still in flight: wait() for it first")
        return None if self._completion.ok else NvmeStatusError(self.name, self._completion.status)

    def result(self) -> Completion:
        """Give the completion of a command that is done.

        Raises:
            NvmeStatusError: the controller reported an error.
            NvmeAbortedError: a reset, shutdown or removal ended it.
            NvmeError: it is still in flight.
        """
        completion = self._completion
        if completion is not None and completion.ok:
            return completion
        error = self.exception()
        assert error is not None  # not ok, or not completed at all
        raise error

    def wait(self, timeout: float | None = None) -> Completion:
        """Block until the command is done and give its completion.

        Args:
            timeout: seconds; by default the queue's.

        Raises:
            NvmeDeadlineError: not done in time. It is still in flight then, and its memory in use.
            NvmeFatalError: the controller stopped with a fatal status.
            DeviceGoneError: the controller does not answer any more.
            NvmeStatusError: the controller reported an error.
            NvmeAbortedError: a reset, shutdown or removal ended it.
        """
        self._queue.wait([self], timeout)
        return self.result()

    def __await__(self) -> Generator[object, None, Completion]:
        yield from self._queue.wait_async([self]).__await__()
        return self.result()

    def add_done_callback(self, callback: Callable[[Command], object]) -> None:
        """Call ``callback(command)`` once when the command is done, at once if it is done already."""
        if not self._queue._when_done(self, callback):
            callback(self)

    def _finish(self, completion: Completion | None, error: NvmeError | None) -> None:
        """Settle the outcome. The queue calls it once, under its lock."""
        assert not self.done()
        self._completion = completion
        self._error = error
        self._data = None

    def __repr__(self) -> str:
        if not self.done():
            return f"<Command {self.name} in flight>"
        return f"<Command {self.name} {self.exception() or 'done'}>"
