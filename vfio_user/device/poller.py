"""Many interrupt vectors at once: one call reads all that have interrupts, and a busy device wakes once for many."""

from __future__ import annotations

import errno
import math
import os
import select
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias, overload

from vfio_user._uapi import ffi, lib
from vfio_user.device.vector import _LONGEST_LOOK, _WAITING, _deadline, _left
from vfio_user.errors import ArgumentError, BoundsError, BusyError, ClosedError, DeadlineError, VfioOSError
from vfio_user.kernel import tracing
from vfio_user.kernel.fd import OwnedFd, readable
from vfio_user.memory import require_no_section

if TYPE_CHECKING:
    from vfio_user.device.vector import IrqVector

__all__ = ["IrqPoller"]

Counts: TypeAlias = "list[tuple[IrqVector, int]]"

_BELL = 1 << 62  # louder than any batch: whoever gathers interrupts stops at once
_LEAVE_TIMEOUT = 10.0
_NAP = 50e-6
_SPARE = 64  # pairs that there is room for in any case; what finds no room is left for the next call


class IrqPoller:
    """Wait for many vectors at once: one call sleeps, and reads all eventfds that can be read.

    Blocking code calls ``wait(timeout)``, asyncio code says ``await poller.wait()`` or ``async for counts in poller``;
    a program with an event loop of its own watches `fileno()` and calls `drain()`.

    With an ``interval`` a busy device wakes Python once for many interrupts: what comes within that time of the last
    wake-up is gathered, and what comes after a pause is told at once. With a ``batch`` gathering also ends when so
    many have come. Interrupts are merged, never lost: the counts say how many there were.

    Lifetime:
        Closed by `close()` or the ``with`` block; the vectors are not closed with it. A vector that is disabled is
        watched no longer.
    Locking:
        One thread or task waits at a time; any thread may `add`, `remove`, `close` and disable vectors meanwhile.
    """

    def __init__(self, vectors: Iterable[IrqVector] = (), *, interval: float = 0.0, batch: int | None = None) -> None:
        """Watch vectors.

        Args:
            vectors: more can be added at any time.
            interval: seconds from one wake-up to the next, at least; 0 gathers nothing.
            batch: interrupts that end the gathering early.

        Raises:
            ArgumentError: the interval is no number of seconds from 0 on, or there is a batch without an interval.
            BoundsError: the batch is not above 0.
        """
        if not 0 <= interval < math.inf:
            raise ArgumentError(f"interval {interval} is not a number of seconds from 0 on")
        if batch is not None and not 1 <= batch < _BELL:
            raise BoundsError(f"batch is {batch}: give at least 1")
        if batch is not None and not interval:
            raise ArgumentError("a batch ends an interval early: give an interval, too")
        self._interval = interval
        self._batch = batch or _BELL
        self._not_before = 0.0
        self._lock = threading.Lock()  # of what is watched, and of the files
        self._turn = threading.Lock()  # held by who waits
        self._inside = 0  # how many times the eventfds were read, times two; odd while they are
        self._closed = self._deserted = False
        self._vectors: dict[int, IrqVector] = {}
        self._gathered: dict[IrqVector, int] = {}
        self._make_room(_SPARE)
        self._epoll = select.epoll()
        self._bell = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "poller")
        self._epoll.register(self._bell, select.EPOLLIN)
        try:
            for vector in vectors:
                self.add(vector)
        except BaseException:
            self.close()
            raise

    # -- what is watched

    def add(self, vector: IrqVector) -> None:
        """Watch one more vector; adding one twice does nothing.

        Raises:
            ClosedError: the vector was disabled, or this poller is closed.
        """
        with self._lock:
            self.fileno()
            if self._vectors.get(vector.fileno()) is vector:
                return
            fd = vector._join(self)
            self._epoll.register(fd, select.EPOLLIN)
            self._vectors[fd] = vector
            self._deserted = False

    def remove(self, vector: IrqVector) -> None:
        """Stop watching a vector, which may be closed already; what came before stays its own."""
        with self._lock:
            self._drop(vector)
        self._wait_for_reader()
        vector._part(self)

    def _forget(self, vector: IrqVector) -> None:
        """Let go of a vector that is being closed: afterwards nobody reads its number, which goes to another file."""
        with self._lock:
            self._drop(vector)
            self._deserted = not self._vectors
            if self._deserted:
                self._ring()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        """Wait until nobody reads vectors that are not watched any longer."""
        turn = self._inside
        if turn % 2:
            with self._lock:
                self._ring()
            deadline = time.monotonic() + _LEAVE_TIMEOUT
            while self._inside == turn and time.monotonic() < deadline:
                time.sleep(_NAP)  # he was woken, and has to leave the system call

    def _drop(self, vector: IrqVector) -> None:
        for fd, each in self._vectors.items():
            if each is vector:
                # Who waits goes on with what there was: an interrupt that he has read is his to tell.
                self._vectors = {number: other for number, other in self._vectors.items() if other is not vector}
                # The kernel forgets a file by itself when it is closed.
                with suppress(OSError):
                    self._epoll.unregister(fd)
                return

    # -- waiting

    def fileno(self) -> int:
        """Give the epoll's descriptor; readable when one of the vectors is.

        Raises:
            ClosedError: the poller is closed.
        """
        if self._closed:
            raise ClosedError("this poller is closed")
        self._bell.fileno()  # a child must not read what is its parent's
        return self._epoll.fileno()

    def drain(self) -> Counts:
        """Give each vector that has interrupts with its count, whatever the interval; never blocks.

        Raises:
            ClosedError: the poller is closed.
            BusyError: somebody waits.
        """
        self._begin()
        try:
            return self._read(0.0, 0.0)
        finally:
            self._end()

    @overload
    def wait(self, timeout: float) -> Counts: ...
    @overload
    def wait(self) -> Awaitable[Counts]: ...
    def wait(self, timeout: float | None = None) -> Counts | Awaitable[Counts]:
        """Wait until vectors have interrupts; give each that has with its count.

        With a timeout (seconds) it blocks this thread. Without one it only returns an awaitable, for asyncio; bound
        that with ``asyncio.timeout()``.

        Raises:
            DeadlineError: none came within ``timeout`` seconds.
            ClosedError: the poller is closed, or the last vector that it watched was disabled.
            BusyError: somebody waits already.
            LockOrderError: this thread is inside of a read section.
        """
        return self._next() if timeout is None else self._block(timeout)

    def _block(self, timeout: float) -> Counts:
        deadline = _deadline(timeout)
        require_no_section(_WAITING)
        self._begin()
        try:
            left = min(timeout, _LONGEST_LOOK)
            while not (found := self._read(left, min(self._rest(), left) if self._interval else 0.0)):
                self._require_some()
                left = _left(deadline)
                if not left:
                    raise DeadlineError(f"no interrupt on any of {len(self._vectors)} vectors within {timeout:g} s")
            if self._interval:
                self._not_before = time.monotonic() + self._interval
            return found
        finally:
            self._end()

    async def _next(self) -> Counts:
        import asyncio

        require_no_section(_WAITING)
        self._begin()
        try:
            while True:
                rest = self._rest()
                if rest and self._batch == _BELL:
                    await asyncio.sleep(rest)
                    continue
                # Kept, so that one who is cancelled while he gathers leaves them to the next.
                self._gathered = dict(self._read(0.0, 0.0))
                if self._gathered and (not rest or sum(self._gathered.values()) >= self._batch):
                    found, self._gathered = self._gathered, {}
                    self._not_before = time.monotonic() + self._interval
                    return list(found.items())
                self._require_some()
                with suppress(TimeoutError):
                    async with asyncio.timeout(rest if self._gathered else None):
                        await readable(self.fileno())
        finally:
            self._end()

    async def __aiter__(self) -> AsyncIterator[Counts]:
        while True:
            yield await self._next()

    # -- inside

    def _read(self, timeout: float, hold: float) -> Counts:
        """Read all that can be read by one call; see ``vu_eventfds_wait``."""
        # First, so that whoever closes a vector waits from now on; then the vectors, whose numbers stay theirs.
        self._inside += 1
        try:
            vectors = self._vectors
            if self._room < 2 * len(vectors):
                self._make_room(4 * len(vectors))
            limits = (int(timeout * 1e9), int(hold * 1e9), self._batch)
            pairs = lib.vu_eventfds_wait(self.fileno(), self._found, self._room, *limits)
        finally:
            self._inside += 1
        if pairs <= 0:
            if pairs and pairs != -errno.EINTR:
                raise VfioOSError(-pairs, "waiting for interrupts")
            return list(self._gathered.items()) if self._gathered else []
        numbers = ffi.unpack(self._found, 2 * pairs)
        if pairs == 1 and numbers[0] in vectors and not self._gathered and tracing.sink is None:
            return [(vectors[numbers[0]], numbers[1])]  # who sleeps is woken by one, nearly always
        return self._counted(vectors, numbers, hold > 0)

    def _make_room(self, pairs: int) -> None:
        self._room = pairs
        self._found = ffi.new("int64_t[]", 2 * pairs)

    def _counted(self, vectors: dict[int, IrqVector], numbers: list[int], repeated: bool) -> Counts:
        # Without the bell's. Vectors that were closed meanwhile are told of too: it came before that.
        found = [(vectors[fd], count) for fd, count in zip(numbers[::2], numbers[1::2], strict=True) if fd in vectors]
        if repeated or self._gathered:
            counts, self._gathered = self._gathered, {}
            for vector, count in found:
                counts[vector] = counts.get(vector, 0) + count
            found = list(counts.items())
        if tracing.sink is not None:
            for vector, count in found:
                vector._counted(count)
        return found

    def _rest(self) -> float:
        """Seconds that are left of the interval."""
        return max(0.0, self._not_before - time.monotonic()) if self._interval else 0.0

    def _begin(self) -> None:
        self.fileno()
        if not self._turn.acquire(blocking=False):
            raise BusyError("somebody waits for this poller already: one thread or task at a time")

    def _end(self) -> None:
        self._turn.release()
        if self._closed:
            self._close_files()

    def _ring(self) -> None:
        with suppress(BlockingIOError, ClosedError):  # it can't be louder, or nobody is there
            os.eventfd_write(self._bell.fileno(), _BELL)

    def _require_some(self) -> None:
        if self._deserted:
            raise ClosedError("the vectors that this poller watched were disabled")

    def close(self) -> None:
        """Stop watching, and end the wait of whoever waits; closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            vectors, self._vectors = self._vectors, {}
            self._ring()
        self._wait_for_reader()
        for vector in vectors.values():
            vector._part(self)
        self._close_files()

    def _close_files(self) -> None:
        """Close them, unless somebody waits: who leaves last does it."""
        with self._lock:
            if self._turn.acquire(blocking=False):
                self._epoll.close()
                self._bell.close()
                self._turn.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<IrqPoller {'closed' if self._closed else f'{len(self._vectors)} vectors'}>"
