"""A virtqueue of a running device: shared by threads and tasks, waited for, and ended by resets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from vfio_user.drivers.tasks import TaskWaiter
from vfio_user.drivers.virtio.errors import VirtioQueueFullError
from vfio_user.drivers.waiting import Waiter
from vfio_user.errors import ClosedError, ZappedError

if TYPE_CHECKING:
    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.virtio.queue import Segment, SplitQueue

__all__ = ["Item", "QueueService"]

T = TypeVar("T")

Item: TypeAlias = "tuple[Sequence[Segment], Sequence[Segment], T]"
"""What the device reads, what it writes, and the driver's token."""


class QueueService(Generic[T]):
    """Serialises the use of a queue, takes in what the device has used, and lets threads wait for it.

    Lifetime:
        As long as its driver is started; it survives resets.
    Locking:
        Any thread may call it. ``used`` and ``ended`` are called with `lock` held.
    """

    def __init__(
        self,
        queue: SplitQueue[T],
        vector: IrqVector | None,
        *,
        used: Callable[[list[tuple[T, int]]], object],
        ended: Callable[[list[T]], object],
        require_running: Callable[[], None],
        diagnose: Callable[[], None],
    ) -> None:
        """Serve a queue.

        Args:
            queue: whose calls are serialised.
            vector: its interrupt; without, waiting polls.
            used: is given what the device has used, in its order; short, and must not raise.
            ended: is given what was in flight when the device was reset; short, and must not raise.
            require_running: raises unless the driver runs.
            diagnose: raises when the device can't answer any more.
        """
        self.queue = queue
        """The queue."""
        self.lock = threading.Lock()
        """Held while the queue is looked at or changed."""
        self.num_halts = 0
        """How many times it was ended by a reset or removal."""
        self._used = used
        self._ended = ended
        self._require_running = require_running
        self._waiter = Waiter(self.lock, vector, poll=self.poll, diagnose=diagnose)
        self._tasks = TaskWaiter(vector, poll=self.poll, diagnose=diagnose)

    def submit(self, items: Iterable[Item[T]]) -> int:
        """Hand buffers over with one notification; give their number, which is less where the queue is full.

        Raises:
            VirtioNotRunningError: the driver is stopped, or being reset.
            VirtioRingError: the queue is broken.
            BoundsError: a segment that can't be; buffers before it are in flight.
        """
        count = 0
        with self.lock:
            self._require_running()
            try:
                for readable, writable, token in items:
                    self.queue.add(readable, writable, token)
                    count += 1
            except VirtioQueueFullError:
                pass
            finally:
                self.kick()
        return count

    def kick(self) -> None:
        """Hand over what was added; called with `lock` held.

        Of a device whose memory is away the notification fails; what takes it away ends what is in flight, too.
        """
        with suppress(ZappedError, ClosedError):
            self.queue.kick()

    def poll(self) -> int:
        """Take in what the device has used; give the number of buffers.

        Raises:
            VirtioRingError: the ring can't be true.
        """
        count = 0
        with self.lock:
            while True:
                found = self.queue.reap()
                if found:
                    count += len(found)
                    self._used(found)
                if self.queue.enable_interrupts():
                    break
            if count:
                self._waiter.notify()
        return count

    def wait(self, done: Callable[[], bool], deadline: float) -> bool:
        """Block until ``done()``, which must be cheap and take no locks; `False` when the deadline comes first.

        It should also become true when the queue is halted: see `num_halts`.
        """
        return self._waiter.wait(done, deadline)

    async def wait_async(self, done: Callable[[], bool], deadline: float) -> bool:
        """Let the event loop run until ``done()``; see `wait`."""
        return await self._tasks.wait_until(done, self._waiter.listen, deadline)

    def halt(self) -> None:
        """Empty the queue: the device was reset, or can't reach memory any more."""
        with self.lock:
            self._ended(self.queue.reset())
            self.num_halts += 1
            self._waiter.notify()
