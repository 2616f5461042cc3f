"""One pair of receive and transmit queues: rings, doorbells, and who waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vfio_user.drivers.ethernet import RingFullError
from vfio_user.drivers.igb.errors import IgbDeadlineError, IgbNotRunningError
from vfio_user.drivers.igb.regs import RxQueue, TxQueue
from vfio_user.drivers.tasks import TaskWaiter
from vfio_user.drivers.waiting import Waiter, deadline_of

if TYPE_CHECKING:
    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.ethernet import Frame
    from vfio_user.drivers.igb.control import IgbRegisters
    from vfio_user.drivers.igb.rings import RxRing, TxRing

__all__ = ["IgbQueue"]


class IgbQueue:
    """A pair of queues of a port; `Igb.queues` has them.

    Lifetime:
        As long as its driver is started; it survives resets.
    Locking:
        Any thread may call it; sending and receiving have a lock each.
    """

    def __init__(
        self,
        number: int,
        registers: IgbRegisters,
        rings: tuple[RxRing, TxRing],
        vectors: tuple[IrqVector | None, IrqVector | None],
        require_running: Callable[[], None],
    ) -> None:
        """Put a pair together.

        Args:
            number: of both queues.
            registers: the controller's.
            rings: what they use.
            vectors: their interrupts; without, waiting polls.
            require_running: raises unless the port runs.
        """
        self.number = number
        """Number of both queues."""
        self.rx, self.tx = rings
        self.num_aborted = 0
        """Frames that were in flight when the port was reset or stopped."""
        self.num_sent = 0
        """Frames that the controller reported as sent."""
        self._name = f"{registers.name} queue {number}"
        self._write = registers.bar.write32
        self._require_running = require_running
        self._rx_tail, self._tx_tail = RxQueue(number).tail, TxQueue(number).tail
        self._rx_lock, self._tx_lock = threading.Lock(), threading.Lock()
        self._off = True
        self._num_halts = 0

        def alive() -> None:
            registers.status()

        self._rx_waiter = Waiter(self._rx_lock, vectors[0], poll=self._look, diagnose=alive)
        self._tx_waiter = Waiter(self._tx_lock, vectors[1], poll=self._reclaim, diagnose=alive)
        self._rx_tasks = TaskWaiter(vectors[0], poll=self._look, diagnose=alive)
        self._tx_tasks = TaskWaiter(vectors[1], poll=self._reclaim, diagnose=alive)

    # -- frames

    def submit(self, frames: Sequence[Frame]) -> int:
        """Hand over as many frames as there is room for, with one write of the tail; give their number."""
        with self._tx_lock:
            self._require_running()
            self._count_sent()
            count = self.tx.put(frames)
            if count:
                self._write(self._tx_tail, self.tx.tail)
        return count

    def send(self, frames: Sequence[Frame], timeout: float) -> None:
        """Hand over all frames, waiting for room where there is none.

        Raises:
            RingFullError: there was no room for some of them within ``timeout``; says how many were handed over.
            IgbNotRunningError: a reset or removal came; frames that it caught are counted as aborted.
        """
        deadline = deadline_of(timeout)
        sent = self.submit(frames)
        while sent < len(frames):
            in_time = self._tx_waiter.wait(self._room_for(len(frames) - sent), deadline)
            sent += self.submit(frames[sent:])
            self._require_room(sent, len(frames), in_time, timeout)

    async def send_async(self, frames: Sequence[Frame], timeout: float) -> None:
        """Let the event loop run while there is no room for all; otherwise as `send`."""
        deadline = deadline_of(timeout)
        sent = self.submit(frames)
        while sent < len(frames):
            room = self._room_for(len(frames) - sent)
            in_time = await self._tx_tasks.wait_until(room, self._tx_waiter.listen, deadline)
            sent += self.submit(frames[sent:])
            self._require_room(sent, len(frames), in_time, timeout)

    def flush(self, timeout: float) -> None:
        """Wait until all frames are sent.

        Raises:
            IgbDeadlineError: some are not, after ``timeout`` seconds.
            IgbNotRunningError: a reset or removal came.
        """
        self._require_running()
        halts = self._num_halts
        done = self._tx_waiter.wait(partial(self._is_flushed, halts), deadline_of(timeout))
        self._require_flushed(done, halts, timeout)

    async def flush_async(self, timeout: float) -> None:
        """Let the event loop run until all frames are sent; otherwise as `flush`."""
        self._require_running()
        halts = self._num_halts
        flushed = partial(self._is_flushed, halts)
        done = await self._tx_tasks.wait_until(flushed, self._tx_waiter.listen, deadline_of(timeout))
        self._require_flushed(done, halts, timeout)

    def receive(self, limit: int, timeout: float) -> list[bytes]:
        """Take the frames that are there, at most ``limit``; wait for one when there is none.

        Raises:
            IgbDeadlineError: none came within ``timeout`` seconds; with 0, nothing is waited for, and none is an
                empty list.
            IgbNotRunningError: a reset or removal came.
        """
        deadline = deadline_of(timeout)
        while not (frames := self._take(limit)) and timeout:
            self._require_frames(self._rx_waiter.wait(self._has_frames, deadline), timeout)
        return frames

    async def receive_async(self, limit: int, timeout: float) -> list[bytes]:
        """Let the event loop run until frames have come; otherwise as `receive`."""
        deadline = deadline_of(timeout)
        while not (frames := self._take(limit)):
            in_time = await self._rx_tasks.wait_until(self._has_frames, self._rx_waiter.listen, deadline)
            self._require_frames(in_time, timeout)
        return frames

    # -- life, called by the port

    def clear(self) -> None:
        """Start over with empty rings, for a controller that was just reset."""
        with self._rx_lock, self._tx_lock:
            self.rx.reset()
            self.tx.reset()

    def start(self) -> None:
        """Let the controller have the receive buffers: the queue is enabled."""
        self._off = False
        self._write(self._rx_tail, self.rx.tail)

    def halt(self) -> None:
        """Count what is in flight as aborted, and wake who waits: the controller is off."""
        with self._tx_lock:
            self._count_sent()
            self.num_aborted += self.tx.reset()
            self._off = True
            self._num_halts += 1
            self._tx_waiter.notify()
        with self._rx_lock:
            self._rx_waiter.notify()

    # -- inside

    def _take(self, limit: int) -> list[bytes]:
        with self._rx_lock:
            self._require_running()
            frames = self.rx.take(limit) if self.rx.ready() else []
            if frames:
                self._write(self._rx_tail, self.rx.tail)
        return frames

    def _room_for(self, frames: int) -> Callable[[], bool]:
        """Make a check for room for several of them: waking up costs more than a frame."""
        each = self.tx.most_for_one
        descriptors = max(each, min(frames * each, self.tx.entries // 4))
        return lambda: self._off or self.tx.num_free >= descriptors

    def _has_frames(self) -> bool:
        return self._off or self.rx.ready()

    def _is_flushed(self, halts: int) -> bool:
        return self._num_halts != halts or not self.tx.in_flight

    def _require_room(self, sent: int, wanted: int, in_time: bool, timeout: float) -> None:
        if sent < wanted and not in_time:
            raise RingFullError(
                f"{self._name}: its ring of {self.tx.entries} was full for {timeout:g} s; {sent} of {wanted} frames "
                "were handed over",
                sent,
            )

    def _require_flushed(self, done: bool, halts: int, timeout: float) -> None:
        if self._num_halts != halts:
            raise IgbNotRunningError(f"{self._name} was reset or stopped; frames in flight are counted as aborted")
        if not done:
            raise IgbDeadlineError(f"{self._name}: {self.tx.in_flight} frames are not sent after {timeout:g} s")

    def _require_frames(self, in_time: bool, timeout: float) -> None:
        if not in_time:
            self._require_running()
            raise IgbDeadlineError(f"{self._name}: no frame came within {timeout:g} s")

    def _look(self) -> int:
        if not self.rx.ready():
            return 0
        with self._rx_lock:
            self._rx_waiter.notify()
        return 1

    def _reclaim(self) -> int:
        with self._tx_lock:
            sent = self._count_sent()
            if sent:
                self._tx_waiter.notify()
        return sent

    def _count_sent(self) -> int:
        sent = self.tx.reclaim()
        self.num_sent += sent
        return sent

    def __repr__(self) -> str:
        return f"<IgbQueue {self._name}, {self.tx.in_flight} frames in flight>"
