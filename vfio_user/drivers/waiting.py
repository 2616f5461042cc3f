"""How threads wait for commands of one queue.

Of the threads that wait, one (the leader) looks at the completion ring or sleeps on the interrupt; the
others sleep on a condition and are told what it found.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from typing import TYPE_CHECKING

from vfio_user.errors import ArgumentError, ClosedError, DeadlineError, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfio_user.device.vector import IrqVector

__all__ = ["LOOK_EVERY", "Waiter", "deadline_of", "unless"]

LOOK_EVERY = 0.25
"""Without an interrupt for so many seconds, the ring and the controller's health are looked at anyway."""

# A polled queue spins for so long, then lets other processes have the CPU between two looks.
_SPIN_FOR = 0.002
_NAP = 50e-6
# Commands that take longer than this are not worth spinning for where there is an interrupt.
_LONGEST_SPIN = 200e-6


def deadline_of(timeout: float) -> float:
    """Turn seconds from now into a time of the monotonic clock.

    Raises:
        ArgumentError: the timeout is negative, or no number of seconds.
    """
    if timeout < 0:
        raise ArgumentError(f"timeout {timeout} is negative; give seconds from 0 on")
    if not timeout < math.inf:
        raise ArgumentError(f"timeout {timeout} never ends; give a number of seconds")
    return time.monotonic() + timeout


def unless(done: Callable[[], bool], action: Callable[[], int | None]) -> int | None:
    """Do something whose failure does not matter to one who has what he waited for."""
    try:
        return action()
    except VfioError:
        if done():
            return None
        raise


class Waiter:
    """Waits for what a queue's completions bring.

    Lifetime:
        As long as its queue.
    Locking:
        `notify` is called with the queue's lock held, everything else without.
    """

    def __init__(
        self,
        lock: threading.Lock,
        vector: IrqVector | None,
        *,
        poll: Callable[[], int],
        diagnose: Callable[[], None],
        spin: Callable[[float], object] | None = None,
        adaptive: bool = False,
    ) -> None:
        """Wait on ``vector``, or by polling without one.

        Args:
            lock: the queue's.
            vector: the queue's interrupt.
            poll: takes completions in.
            diagnose: raises when the controller is fatal or gone; asked when nothing happens.
            spin: looks for completions for so many seconds, without the GIL; by default other threads run instead.
            adaptive: spin before sleeping on the interrupt, about as long as it has lately taken.
        """
        self._vector = vector
        self._changed = threading.Condition(lock)
        self._poll = poll
        self._diagnose = diagnose
        self._leader: int | None = None
        self._spin = spin or (lambda seconds: time.sleep(0))
        self._adaptive = adaptive
        self._listeners: list[Callable[[], None]] = []
        self._usual = 0.0  # seconds until something happened, a mean that forgets

    def notify(self) -> None:
        """Wake who waits; the queue calls it under its lock when commands are done."""
        self._changed.notify_all()
        for listener in self._listeners:
            listener()
        if self._vector is not None and self._leader not in (None, threading.get_ident()):
            # The leader sleeps on an interrupt that somebody else has served: wake it by hand.
            with contextlib.suppress(ClosedError):
                os.eventfd_write(self._vector.fileno(), 1)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have a function called by each `notify`, under the queue's lock; what is returned ends that."""
        with self._changed:
            self._listeners.append(listener)

        def end() -> None:
            with self._changed:
                self._listeners.remove(listener)

        return end

    def wait(self, done: Callable[[], bool], deadline: float) -> bool:
        """Block until ``done()``, which must be cheap and take no locks; `False` when the deadline comes first.

        Raises:
            VfioError: polling failed, or the controller is fatal or gone, while it is not done.
        """
        while not done():
            if time.monotonic() >= deadline:
                unless(done, self._diagnose)
                return done()
            if self._lead(done, deadline):
                try:
                    self._look(done, deadline)
                finally:
                    self._resign()
        return True

    def _lead(self, done: Callable[[], bool], deadline: float) -> bool:
        """Become the leader, or sleep until something changed."""
        with self._changed:
            if self._leader is None:
                self._leader = threading.get_ident()
                return True
            if not done():
                self._changed.wait(max(0.0, deadline - time.monotonic()))
            return False

    def _resign(self) -> None:
        with self._changed:
            self._leader = None
            self._changed.notify_all()

    def _look(self, done: Callable[[], bool], deadline: float) -> None:
        progressed = looked = time.monotonic()
        while True:
            progress = unless(done, self._poll)
            now = time.monotonic()
            if progress or done():
                self._usual += (now - progressed - self._usual) / 8
            if done() or now >= deadline:
                return
            if progress:
                progressed = looked = now
            elif now - looked >= LOOK_EVERY:
                looked = now
                unless(done, self._diagnose)
            self._pause(now - progressed, deadline - now)

    def _pause(self, idle: float, left: float) -> None:
        """Wait a little: something may have happened then."""
        if self._vector is None:
            if idle < _SPIN_FOR:
                self._spin(min(_SPIN_FOR, left))
            else:
                time.sleep(_NAP)
            return
        # Twice the usual time: most commands come within it, and those that don't are worth a sleep.
        if self._adaptive and self._usual <= _LONGEST_SPIN and self._spin(min(2 * self._usual + 1e-6, left)):
            return
        with contextlib.suppress(DeadlineError):
            self._vector.wait(min(LOOK_EVERY, left))
