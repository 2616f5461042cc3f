"""Moving more data than one command may: many commands in flight, accounted for together."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.errors import NvmeQueueFullError
from vfio_user.drivers.waiting import deadline_of
from vfio_user.errors import VfioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vfio_user.drivers.nvme.command import Command
    from vfio_user.drivers.nvme.commands import SubmissionEntry
    from vfio_user.drivers.nvme.queue import QueuePair

__all__ = ["Transfer"]

_SHORT_NAP = 0.001


class Transfer:
    """A series of commands on one queue that count as one.

    As many as the queue has room for are in flight at a time. After the first error no more are submitted; those
    in flight are waited for, so that the memory is free when `run` raises, unless it raises `NvmeDeadlineError`.

    Lifetime:
        Used once.
    Locking:
        Belongs to the thread or task that runs it.
    """

    def __init__(
        self, queue: QueuePair, pieces: Iterable[tuple[SubmissionEntry, memoryview | None]], *, writes: bool
    ) -> None:
        """Prepare to send ``pieces``, each a command with its data; ``writes`` as in `QueuePair.submit`."""
        self.queue = queue
        """The queue that it uses."""
        self._pieces: Iterator[tuple[SubmissionEntry, memoryview | None]] = iter(pieces)
        self._writes = writes
        self._in_flight: deque[Command] = deque()
        self._error: VfioError | None = None
        self._exhausted = False

    @property
    def in_flight(self) -> tuple[Command, ...]:
        """The commands that are not done."""
        return tuple(command for command in self._in_flight if not command.done())

    def run(self, timeout: float) -> None:
        """Send everything and wait for it.

        Args:
            timeout: seconds for each command.

        Raises:
            VfioError: the first error of a command, or of submitting one.
            NvmeDeadlineError: a command was not done in time; some are still `in_flight`.
        """
        deadline_of(timeout)  # a negative one is refused before anything is in flight
        while self._submit() or self._in_flight:
            if self._in_flight:
                self.queue.wait([self._in_flight[0]], timeout)
                self._settle()
            else:
                self.queue.wait_for_room(timeout)
        if self._error is not None:
            raise self._error

    async def run_async(self, timeout: float) -> None:
        """Send everything, letting the event loop run meanwhile; see `run`."""
        import asyncio

        full_until = deadline_of(timeout)
        while self._submit() or self._in_flight:
            if self._in_flight:
                await self.queue.wait_async([self._in_flight[0]], timeout)
                self._settle()
                full_until = deadline_of(timeout)
            elif time.monotonic() < full_until:
                await asyncio.sleep(_SHORT_NAP)
            else:
                self.queue.wait_for_room(0)
        if self._error is not None:
            raise self._error

    def when_settled(self, action: Callable[[], object]) -> None:
        """Call ``action`` once nothing of this is in flight any more: at once, or when the last is done."""
        remaining = self.in_flight
        if not remaining:
            action()
            return
        # Commands may be done while this runs, so each counts itself down, and this function counts as one more.
        counter = itertools.count(1)

        def count(_: object) -> None:
            if next(counter) == len(remaining) + 1:
                action()

        for command in remaining:
            command.add_done_callback(count)
        count(None)

    def _submit(self) -> bool:
        """Hand over as many pieces as there is room for; tell whether some are left."""
        if self._error is not None or self._exhausted:
            return False
        room = self.queue.num_free
        batch = list(itertools.islice(self._pieces, room))
        if len(batch) < room:
            self._exhausted = True
        if not batch:
            return not self._exhausted
        try:
            self._in_flight.extend(self.queue.submit_many(batch, writes=self._writes))
        except NvmeQueueFullError:
            # Another thread took the room between the look and the submission.
            self._pieces = itertools.chain(batch, self._pieces)
            self._exhausted = False
        except VfioError as exc:
            self._error = exc
            return False
        return not self._exhausted

    def _settle(self) -> None:
        while self._in_flight and self._in_flight[0].done():
            error = self._in_flight.popleft().exception()
            self._error = self._error or error
