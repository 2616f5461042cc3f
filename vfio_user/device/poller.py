"""Many interrupt vectors at once: one call reads all that have interrupts, and a busy device wakes once for many."""

from __future__ import annotations

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
from vfio_user.device.vector import WAITING, deadline_of, left_of
from vfio_user.errors import ArgumentError, BoundsError, BusyError, ClosedError, DeadlineError, VfioOSError
from vfio_user.kernel.fd import OwnedFd, readable
from vfio_user.memory import require_no_section

if TYPE_CHECKING:
    from vfio_user.device.vector import IrqVector

__all__ = ["IrqPoller"]

Counts: TypeAlias = "list[tuple[IrqVector, int]]"


class IrqPoller:
    """Wait for many vectors at once: one call reads all eventfds that can be read.

    Blocking code calls ``wait(timeout)``, asyncio code says ``await poller.wait()`` or ``async for counts in poller``;
    a program with an event loop of its own watches `fileno()` and calls `drain()`.

    With an ``interval`` a busy device wakes Python once for many interrupts: what comes within that time of the last
    wake-up is gathered, and what comes after a pause is told at once. With a ``batch`` gathering also ends when so
    many have come, for which each has to be looked at. Interrupts are merged, never lost: the counts say how many there
    were.

    Lifetime:
        Closed by `close()` or the ``with`` block; the vectors are not closed with it. A vector that is disabled is
        watched no longer.
    Locking:
        One thread or task waits at a time; any thread may `add`, `remove`, `close` and disable vectors meanwhile.
    """

    # Who waits sleeps without a lock, and reads under the one that what is watched is changed under: nobody reads the
    # number of a vector that has gone, which another file may have by then.

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
        if batch is not None and batch < 1:
            raise BoundsError(f"batch is {batch}: give at least 1")
        if batch is not None and not interval:
            raise ArgumentError("a batch ends an interval early: give an interval, too")
        self._interval = interval
        self._batch = batch
        self._not_before = 0.0
        self._lock = threading.RLock()  # of all that follows; a signal handler may come in where its thread is
        self._turn = threading.Lock()  # held by who waits
        self._closed = self._deserted = False
        self._vectors: dict[int, IrqVector] = {}
        self._gathered: dict[IrqVector, int] = {}
        self._found = ffi.new("int64_t[]", 1)
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
        self.fileno()
        with self._lock:
            self.fileno()
            if self._vectors.get(vector.fileno()) is vector:
                return
            fd = vector._join(self)
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except BaseException:
                vector._part(self)
                raise
            self._vectors[fd] = vector
            self._deserted = False
            self._gather()  # a signal handler may add one, where its thread has just read
            self._found = ffi.new("int64_t[]", 2 * len(self._vectors) + 3)  # a count, and a pair for each and the bell

    def remove(self, vector: IrqVector) -> None:
        """Stop watching a vector, which may be closed already; what comes later stays its own."""
        if not self._bell.forked:
            self._drop(vector)
            vector._part(self)

    def _forget(self, vector: IrqVector) -> None:
        """Let go of a vector that is being closed: afterwards nobody here reads its number."""
        with self._lock:
            self._drop(vector)
            self._deserted = not self._vectors
            if self._deserted:
                self._ring()

    def _drop(self, vector: IrqVector) -> None:
        with self._lock:
            for fd, each in self._vectors.items():
                if each is vector:
                    del self._vectors[fd]
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
            self._read()
            return self._tell()
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
        deadline = deadline_of(timeout)
        require_no_section(WAITING)
        self._begin()
        try:
            while True:
                self._read()
                rest, left = self._rest(), left_of(deadline)
                if self._is_time(rest) or (self._gathered and not left):
                    return self._tell()
                self._require_some()
                if not left:
                    raise DeadlineError(f"no interrupt on any of {len(self._vectors)} vectors within {timeout:g} s")
                self._sleep(min(left, rest) if rest else left, rest)
        finally:
            self._end()

    def _sleep(self, seconds: float, rest: float) -> None:
        if not rest or self._batch is not None:
            self._epoll.poll(seconds, 1)
            return
        # Who waits for the end of an interval is woken by nothing that comes meanwhile.
        lib.vu_eventfd_wait(self._bell.fileno(), int(seconds * 1e9))

    async def _next(self) -> Counts:
        import asyncio

        require_no_section(WAITING)
        self._begin()
        try:
            while True:
                self._read()
                rest = self._rest()
                if self._is_time(rest):
                    return self._tell()
                self._require_some()
                bell_only = rest and self._batch is None
                with suppress(TimeoutError):
                    async with asyncio.timeout(rest or None):
                        await readable(self._bell.fileno() if bell_only else self._epoll.fileno())
        finally:
            self._end()

    async def __aiter__(self) -> AsyncIterator[Counts]:
        while True:
            yield await self._next()

    # -- inside

    def _read(self) -> None:
        """Gather what can be read, by one call; see ``vu_eventfds_read``."""
        with self._lock:
            if self._closed:
                return
            try:
                result = lib.vu_eventfds_read(self._epoll.fileno(), self._found, len(self._found))
            finally:
                # A signal handler that raises must not take what was read already.
                self._gather()
            if result:
                raise VfioOSError(-result, "reading interrupts")

    def _gather(self) -> None:
        pairs = int(self._found[0])
        if not pairs:
            return
        numbers = ffi.unpack(self._found, 1 + 2 * pairs)
        gathered = self._gathered.copy()
        for fd, count in zip(numbers[1::2], numbers[2::2], strict=True):
            vector = self._vectors.get(fd)
            if vector is not None:  # else it is the bell
                gathered[vector] = gathered.get(vector, 0) + vector._counted(count)
        self._gathered, self._found[0] = gathered, 0

    def _is_time(self, rest: float) -> bool:
        """Tell whether what was gathered is to be told."""
        if not self._gathered:
            return False
        if not rest or self._closed or self._deserted:
            return True
        return self._batch is not None and sum(self._gathered.values()) >= self._batch

    def _tell(self) -> Counts:
        with self._lock:
            gathered, self._gathered = self._gathered, {}
        if self._interval and gathered:
            self._not_before = time.monotonic() + self._interval
        return list(gathered.items())

    def _rest(self) -> float:
        """Seconds that are left of the interval."""
        return max(0.0, self._not_before - time.monotonic()) if self._interval else 0.0

    def _require_some(self) -> None:
        self.fileno()
        if self._deserted:
            raise ClosedError("the vectors that this poller watched were disabled")

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
            os.eventfd_write(self._bell.fileno(), 1)

    def close(self) -> None:
        """Stop watching, and end the wait of whoever waits; closing twice does nothing."""
        if self._bell.forked:  # who waits, or has the lock, is a thread of the parent
            self._closed = True
            self._epoll.close()
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            vectors, self._vectors = self._vectors, {}
            for fd in vectors:
                self._epoll.unregister(fd)
            self._ring()
        for vector in vectors.values():
            vector._part(self)
        self._close_files()

    def _close_files(self) -> None:
        """Close them, unless somebody waits: who leaves last does it."""
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
