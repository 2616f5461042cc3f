"""Interrupt vectors: eventfds that block, poll, or are awaited."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, overload

from vfio_user._uapi import lib
from vfio_user.errors import ArgumentError, BusyError, ClosedError, DeadlineError, VfioOSError
from vfio_user.kernel import tracing
from vfio_user.kernel.fd import OwnedFd
from vfio_user.memory import require_no_section

if TYPE_CHECKING:
    import asyncio

    from vfio_user.device.poller import IrqPoller

__all__ = ["WAITING", "IrqVector", "deadline_of", "left_of"]

_LONGEST_LOOK = 3600.0
"""Seconds of one system call: the kernel counts milliseconds in 32 bits. Longer waits take several."""
_LEAVE_TIMEOUT = 10.0
"""Seconds that waiters have to leave a vector that is being closed; all that they do is wake up."""

WAITING = "waiting for an interrupt"


class IrqVector:
    """One interrupt vector of a device, delivered through an eventfd.

    Interrupts that arrive while nobody waits are counted, not lost: every way of waiting returns how many came since
    the last look. Blocking code calls ``wait(timeout)``; asyncio code says ``await vector.wait()`` or
    ``async for count in vector``; a program with an event loop of its own watches `fileno()` and calls `drain()`.

    Lifetime:
        Belongs to its `IrqIndex`: disabling the index closes its vectors. It survives a reset of the device.
    Locking:
        Any thread may wait, several at a time; each interrupt is counted by one of them. Waiting inside of
        a read section of a memory lock is refused.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        """Number of the vector within its index."""
        self.name = name
        """Device, index and number, for messages: ``"0000:01:00.0 MSI-X 3"``."""
        self._fd = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), name)
        self._lock = threading.Lock()
        self._state = threading.Condition(self._lock)
        self._waiting = 0
        self._closing = False
        self._futures: list[asyncio.Future[int]] = []  # of tasks that wait, all of one loop
        self._loops: list[asyncio.AbstractEventLoop] = []  # that watch the file
        self._pollers: list[IrqPoller] = []

    def fileno(self) -> int:
        """Give the eventfd, for ``select``, ``epoll`` or ``loop.add_reader``; readable when interrupts came.

        Raises:
            ClosedError: the vector was disabled.
        """
        return self._fd.fileno()

    def drain(self) -> int:
        """Give the number of interrupts since the last look, 0 when there were none; never blocks.

        Raises:
            ClosedError: the vector was disabled.
        """
        # Under the lock that closing takes too: the number of a closed file may be a stranger's, and what can be read
        # while the vector is being closed is the wake-up of its waiters.
        with self._lock:
            self._require_open()
            count = self._read()
        return self._counted(count) if count else 0

    def _read(self) -> int:
        try:
            return os.eventfd_read(self._fd.fileno())
        except BlockingIOError:
            return 0

    def _counted(self, count: int) -> int:
        if tracing.sink is not None:
            tracing.sink.instant("interrupt", self.name, {"count": count})
        return count

    @overload
    def wait(self, timeout: float) -> int: ...
    @overload
    def wait(self) -> Awaitable[int]: ...
    def wait(self, timeout: float | None = None) -> int | Awaitable[int]:
        """Wait for interrupts and give how many came.

        With a timeout (seconds) it blocks this thread. Without one it only returns an awaitable, for asyncio; bound
        that with ``asyncio.timeout()``. So there is no way to block for ever.

        Raises:
            DeadlineError: none came within ``timeout``.
            ClosedError: the vector was disabled, before or meanwhile.
            LockOrderError: this thread is inside of a read section.
        """
        return self._next() if timeout is None else self._block(timeout)

    def _block(self, timeout: float) -> int:
        deadline = deadline_of(timeout)
        require_no_section(WAITING)
        with self._lock:
            self._require_open()
            fd = self.fileno()
            self._waiting += 1
        try:
            while True:
                # The file stays open as long as somebody waits; so it can be read without the lock, as soon as it can.
                count = lib.vu_eventfd_wait(fd, int(left_of(deadline) * 1e9))
                if self._closing:
                    os.eventfd_write(fd, 1)  # the wake-up is for the others, too
                    raise self._closed_error()
                if count > 0:
                    return self._counted(count)
                if count < 0 and count != -errno.EINTR:
                    raise VfioOSError(-count, f"waiting for an interrupt on {self.name}")
                if time.monotonic() >= deadline:
                    raise DeadlineError(f"no interrupt on {self.name} within {timeout:g} s")
        finally:
            with self._lock:
                self._waiting -= 1
                if self._closing:
                    self._state.notify_all()

    async def _next(self) -> int:
        import asyncio

        loop = asyncio.get_running_loop()
        require_no_section(WAITING)
        count = self.drain()
        if count:
            return count
        future, taken = self._watch(loop), False
        try:
            count, taken = await future, True
            return count
        finally:
            self._leave(future, taken)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[int]:
        with self._lock:
            self._require_open()
            if self._futures and self._futures[0].get_loop() is not loop:
                raise BusyError(f"tasks of another event loop wait for {self.name}; one loop has a vector at a time")
            future: asyncio.Future[int] = loop.create_future()
            self._futures.append(future)
        try:
            # Again each time, which costs no system call: somebody may have watched or left the file meanwhile.
            self._listen(loop, self._wake, loop)
        except BaseException:
            self._leave(future, False)
            raise
        return future

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give what came to the task that has waited longest. The event loop calls this.

        It goes on watching after a task was served, since the next wait is likely to come soon: only when something
        arrives that nobody waits for does it stop.
        """
        with self._lock:
            if self._closing:
                return
            future = next((each for each in self._futures if not each.done()), None)
            if future is None or future.get_loop() is not loop:
                loop.remove_reader(self._fd.fileno())
                self._loops.remove(loop)
            elif count := self._read():
                future.set_result(self._counted(count))

    def _leave(self, future: asyncio.Future[int], taken: bool) -> None:
        with self._lock:
            if self._closing:
                return
            self._futures.remove(future)
            if not taken and future.done() and not future.cancelled():
                # The task was cancelled after it was served: what came is for others.
                os.eventfd_write(self._fd.fileno(), future.result())

    def _listen(self, loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
        """Have an event loop call a function when interrupts came, until `_unlisten` or until the vector is closed."""
        with self._lock:
            self._require_open()
            loop.add_reader(self._fd.fileno(), callback, *arguments)
            if loop not in self._loops:
                self._loops = [each for each in self._loops if not each.is_closed()] + [loop]

    def _unlisten(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if not self._closing and loop in self._loops:
                self._loops.remove(loop)
                loop.remove_reader(self._fd.fileno())

    def __await__(self) -> Generator[object, None, int]:
        return self._next().__await__()

    async def __aiter__(self) -> AsyncIterator[int]:
        while True:
            yield await self._next()

    def _join(self, poller: IrqPoller) -> int:
        """Note who reads the eventfd, too; give its number, which stays its own until the poller has let go of it."""
        with self._lock:
            self._require_open()
            self._pollers.append(poller)
            return self._fd.fileno()

    def _part(self, poller: IrqPoller) -> None:
        """Forget a poller."""
        with self._lock:
            if poller in self._pollers:
                self._pollers.remove(poller)

    def _close(self) -> None:
        with self._state:
            if self._closing or self._fd.closed:
                return
            self._closing = True
            pollers, self._pollers = self._pollers, []
        for poller in pollers:  # without the lock: a poller takes its own first
            poller._forget(self)
        with self._state:
            # The waiters wake up, see the flag, and leave; only then may the number be given to another file.
            os.eventfd_write(self._fd.fileno(), 1)
            self._state.wait_for(lambda: self._waiting == 0, _LEAVE_TIMEOUT)
            fd = self._fd.detach()
        self._dismiss(fd)

    def _dismiss(self, fd: int) -> None:
        """Let every event loop forget the file, and close it after the last has."""
        # A loop is told by its own thread only, and before the number may be given to another file.
        loops = [each for each in self._loops if not each.is_closed()]
        left = len(loops)

        def forget(loop: asyncio.AbstractEventLoop) -> None:
            nonlocal left
            if not loop.is_closed():
                loop.remove_reader(fd)
                for future in self._futures:
                    if future.get_loop() is loop and not future.done():
                        future.set_exception(self._closed_error())
            with self._lock:
                left -= 1
                last = not left
            if last:
                os.close(fd)

        if not loops:
            os.close(fd)
        for loop in loops:
            if _is_ours(loop):
                forget(loop)
                continue
            try:
                loop.call_soon_threadsafe(forget, loop)
            except RuntimeError:  # closed meanwhile
                forget(loop)

    def _require_open(self) -> None:
        if self._closing:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name} was disabled")

    def __repr__(self) -> str:
        return f"<IrqVector {self.name}{' closed' if self._fd.closed else ''}>"


def _is_ours(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether this thread may use an event loop: it runs it, or nobody does."""
    import asyncio

    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return not loop.is_running()


def deadline_of(timeout: float) -> float:
    """Give the end of a wait, on the monotonic clock.

    Raises:
        ArgumentError: the timeout is no number of seconds from 0 on.
    """
    if not 0 <= timeout < math.inf:
        raise ArgumentError(f"timeout {timeout} is not a number of seconds from 0 on")
    return time.monotonic() + timeout


def left_of(deadline: float) -> float:
    """Give the seconds that are left, as many as one system call takes at most; 0 when it is over."""
    return min(max(0.0, deadline - time.monotonic()), _LONGEST_LOOK)
