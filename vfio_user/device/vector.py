"""Interrupt vectors: eventfds that block, poll, or are awaited."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self, overload

from vfio_user.errors import ArgumentError, ClosedError, DeadlineError
from vfio_user.kernel.fd import OwnedFd

if TYPE_CHECKING:
    import asyncio

__all__ = ["IrqPoller", "IrqVector"]


class IrqVector:
    """One interrupt vector of a device, delivered through an eventfd.

    Interrupts that arrive while nobody waits are counted, not lost: every way of waiting returns how many came since
    the last look. Blocking code calls ``wait(timeout)``; asyncio code says ``await vector.wait()`` or
    ``async for count in vector``; a program with an event loop of its own watches `fileno()` and calls `drain()`.

    Lifetime:
        Belongs to its `IrqIndex`: disabling the index closes its vectors. It survives a reset of the device.
    Locking:
        Any thread may wait, several at a time; each interrupt is counted by one of them. Never wait inside of a
        read section of the memory lock.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        """Number of the vector within its index."""
        self.name = name
        """Device, index and number, for messages: ``"0000:01:00.0 MSI-X 3"``."""
        self._fd = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), name)
        self._state = threading.Condition()
        self._waiting = 0
        self._closing = False
        self._futures: list[asyncio.Future[None]] = []

    def fileno(self) -> int:
        """Give the eventfd, for ``select``, ``epoll`` or ``loop.add_reader``; readable when interrupts came.

        Raises:
            ClosedError: the vector was disabled.
        """
        return self._fd.fileno()

    def drain(self) -> int:
        """Give the number of interrupts since the last look, 0 when there were none; never blocks."""
        try:
            return os.eventfd_read(self._fd.fileno())
        except BlockingIOError:
            return 0

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
        """
        return self._next() if timeout is None else self._block(timeout)

    def _block(self, timeout: float) -> int:
        if timeout < 0:
            raise ArgumentError(f"timeout {timeout} is negative")
        deadline = time.monotonic() + timeout
        with self._state:
            fd = self.fileno()
            self._waiting += 1
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            while True:
                poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if self._closing:
                    raise ClosedError(f"{self.name} was disabled while this thread waited for it")
                count = self.drain()
                if count:
                    return count
                if time.monotonic() >= deadline:
                    raise DeadlineError(f"no interrupt on {self.name} within {timeout:g} s")
        finally:
            with self._state:
                self._waiting -= 1
                self._state.notify_all()

    async def _next(self) -> int:
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            count = self.drain()
            if count:
                return count
            future: asyncio.Future[None] = loop.create_future()
            if not self._futures:
                loop.add_reader(self.fileno(), self._wake)
            self._futures.append(future)
            try:
                await future
            finally:
                if future in self._futures:
                    self._futures.remove(future)
                if not self._futures and not self._fd.closed:
                    loop.remove_reader(self.fileno())

    def _wake(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def __await__(self) -> Generator[object, None, int]:
        return self._next().__await__()

    async def __aiter__(self) -> AsyncIterator[int]:
        while True:
            yield await self._next()

    def _signal(self) -> None:
        """Count one interrupt by hand, as the kernel would."""
        os.eventfd_write(self.fileno(), 1)

    def _close(self) -> None:
        with self._state:
            if self._fd.closed:
                return
            self._closing = True
            # The waiters wake up, see the flag, and leave; only then may the number be given to another file.
            os.eventfd_write(self._fd.fileno(), 1)
            self._state.wait_for(lambda: self._waiting == 0, timeout=10)
            futures, self._futures = self._futures, []
            loop = futures[0].get_loop() if futures else None
            if loop is None or loop.is_closed():
                self._fd.close()
            else:
                # A reader can be removed by its loop's own thread only, and before the number is given away.
                loop.call_soon_threadsafe(self._fail, futures, self._fd.detach())

    def _fail(self, futures: list[asyncio.Future[None]], fd: int) -> None:
        futures[0].get_loop().remove_reader(fd)
        os.close(fd)
        for future in futures:
            if not future.done():
                future.set_exception(ClosedError(f"{self.name} was disabled while a task waited for it"))

    def __repr__(self) -> str:
        return f"<IrqVector {self.name}{' closed' if self._fd.closed else ''}>"


class IrqPoller:
    """Wait for many vectors at once, by one epoll.

    Lifetime:
        Closed by `close()` or the ``with`` block; the vectors are not closed with it.
    Locking:
        One thread waits at a time; any thread may `add` and `remove`.
    """

    def __init__(self, vectors: Iterable[IrqVector] = ()) -> None:
        self._epoll = select.epoll()
        self._vectors: dict[int, IrqVector] = {}
        for vector in vectors:
            self.add(vector)

    def add(self, vector: IrqVector) -> None:
        """Watch one more vector."""
        fd = vector.fileno()
        self._epoll.register(fd, select.EPOLLIN)
        self._vectors[fd] = vector

    def remove(self, vector: IrqVector) -> None:
        """Stop watching a vector, which may be closed already."""
        for fd, each in list(self._vectors.items()):
            if each is vector:
                del self._vectors[fd]
                if not vector._fd.closed:
                    self._epoll.unregister(fd)

    def fileno(self) -> int:
        """Give the epoll's descriptor; readable when one of the vectors is."""
        return self._epoll.fileno()

    def wait(self, timeout: float) -> list[tuple[IrqVector, int]]:
        """Wait until one of the vectors has interrupts; give each that has with its count.

        Raises:
            DeadlineError: none came within ``timeout`` seconds.
            ClosedError: the poller is closed.
        """
        if self._epoll.closed:
            raise ClosedError("this poller is closed")
        if timeout < 0:
            raise ArgumentError(f"timeout {timeout} is negative")
        deadline = time.monotonic() + timeout
        while True:
            ready = self._epoll.poll(max(0.0, deadline - time.monotonic()), max(1, len(self._vectors)))
            found = [(vector, vector.drain()) for vector in map(self._vectors.get, (fd for fd, _ in ready)) if vector]
            counted = [(vector, count) for vector, count in found if count]
            if counted:
                return counted
            if time.monotonic() >= deadline:
                raise DeadlineError(f"no interrupt on any of {len(self._vectors)} vectors within {timeout:g} s")

    def close(self) -> None:
        """Stop watching; closing twice does nothing."""
        self._epoll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
