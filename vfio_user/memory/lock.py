"""The memory lock of one device, and of a set of devices that are reset together.

The lock itself is in C, a part of the `Window`: register accesses take it for reading without a Python frame. What is
here takes it in blocks of Python.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vfio_user._mmio import read_sections
from vfio_user.errors import ArgumentError, LockOrderError, MemoryLockBusyError

if TYPE_CHECKING:
    from vfio_user._mmio import Window

__all__ = ["LockSet", "MemoryLock", "require_no_section"]

_FIRST_PAUSE = 50e-6
_LONGEST_PAUSE = 5e-3


def require_no_section(doing: str) -> None:
    """Refuse to wait inside of a read section: whoever wants the memory lock for writing would have to wait too.

    Args:
        doing: what this thread is about to do, for the message: ``"waiting for an interrupt"``.

    Raises:
        LockOrderError: this thread is inside of a read section, of whichever device.
    """
    if read_sections():
        raise LockOrderError(f"this thread is inside of a read section: leave access() before {doing}")


class MemoryLock:
    """The memory lock of one device.

    Lifetime:
        A face of the window's lock: it may come and go, the lock lives as long as the window.
    Locking:
        Both ways nest. The writer may read. A reader may not write (`LockOrderError`), and who has any memory lock may
        not wait for another one: take several with a `LockSet`.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        """The window that it guards."""

    @property
    def name(self) -> str:
        """The device's name."""
        return self.window.name

    @property
    def holders(self) -> list[tuple[int, float]]:
        """Who is in: native thread id, and for how many seconds at least (0.0 while no writer waits)."""
        return self.window.holders()

    @contextmanager
    def reading(self, wait: float | None = None) -> Iterator[None]:
        """Keep the memory from being taken away in a ``with`` block.

        Args:
            wait: seconds to wait for memory that is zapped; `None` fails at once.

        Raises:
            ZappedError: the memory is away; also its children `MemoryDisabledError` and `DeviceGoneError`.
            DeadlineError: it did not come back within ``wait``.
            MemoryLockBusyError: a writer had the lock for a second without zapping.
            ClosedError: the window is closed, or (`ForkedError`) the parent's.
        """
        self.window.acquire_read(wait)
        try:
            yield
        finally:
            self.window.release_read()

    @contextmanager
    def writing(self, timeout: float) -> Iterator[None]:
        """Keep everybody else out in a ``with`` block.

        Args:
            timeout: seconds to wait for readers and for another writer.

        Raises:
            MemoryLockBusyError: somebody did not leave; ``holders`` says who.
            LockOrderError: this thread reads, or has the lock of another device.
            ClosedError: the window is closed, or (`ForkedError`) the parent's.
        """
        self.window.lock_write(timeout)
        try:
            yield
        finally:
            self.window.unlock_write()

    def __repr__(self) -> str:
        return f"<MemoryLock of {self.name}>"


class LockSet:
    """The memory locks of several devices, taken for writing together or not at all.

    Each is *tried* in the order of the devices' names; when one is busy, those before it are released in reverse (as
    the kernel does in ``vfio_pci_dev_set_hot_reset()``) and the set pauses before it tries again: waiting for one
    while holding another could deadlock with a thread that has them the other way round.

    Lifetime:
        Keeps the windows alive, nothing more.
    Locking:
        Takes all memory locks of the set. May be used by several threads.
    """

    def __init__(self, windows: Iterable[Window]) -> None:
        self.windows: tuple[Window, ...] = tuple(sorted(windows, key=lambda window: (window.name, window.address)))
        """The windows in the order in which their locks are taken."""
        if len(set(self.windows)) != len(self.windows):
            raise ArgumentError("a window is in the set twice")

    @contextmanager
    def writing(self, timeout: float) -> Iterator[None]:
        """Keep everybody else out of all devices in a ``with`` block.

        Args:
            timeout: seconds; 0 tries once.

        Raises:
            MemoryLockBusyError: one was busy whenever it was tried; the message names the device and the threads.
            LockOrderError: this thread is inside of a read section.
            ClosedError: a window is closed, or (`ForkedError`) the parent's.
        """
        self._acquire(timeout)
        try:
            yield
        finally:
            self._release(len(self.windows))

    def _acquire(self, timeout: float) -> None:
        if not 0 <= timeout < 3600 * 24 * 365:
            raise ArgumentError(f"a timeout is a number of seconds from 0 up, not {timeout}")
        require_no_section("taking locks for writing")
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        seen: dict[tuple[str, int], float] = {}
        while (busy := self._try_all()) is not None:
            now = time.monotonic()
            # who was in at every try since then has been in since then, as far as a caller cares
            seen = {(busy.name, tid): seen.get((busy.name, tid), now - held) for tid, held in busy.holders()}
            if now >= deadline:
                raise _busy(busy, {tid: now - since for (_, tid), since in seen.items()}, timeout)
            time.sleep(min(pause * random.uniform(0.5, 1.0), max(deadline - now, 0.0)))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _try_all(self) -> Window | None:
        """Take all locks, or none and return the one that was busy."""
        taken = 0
        try:
            for window in self.windows:
                if not window.try_lock_write():
                    return window
                taken += 1
        finally:
            if taken < len(self.windows):
                self._release(taken)
        return None

    def _release(self, count: int) -> None:
        for window in reversed(self.windows[:count]):
            window.unlock_write()

    def __repr__(self) -> str:
        return f"<LockSet of {', '.join(window.name for window in self.windows)}>"


def _busy(window: Window, held: dict[int, float], timeout: float) -> MemoryLockBusyError:
    threads = ", ".join(f"thread {tid} (in for at least {seconds:.3f} s)" for tid, seconds in held.items())
    who = threads or "a thread that has left by now"
    return MemoryLockBusyError(
        f"the memory lock of {window.name} was busy for {timeout:g} s: {who}; it must leave its access() section first",
        held.items(),
    )
