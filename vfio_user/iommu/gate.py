"""Let many calls in together, or one alone."""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["Gate"]


class Gate:
    """Keep calls that concern one mapping apart from a call that concerns many of them.

    Without it `AddressSpace.unmap_all` could take away a mapping that another thread has just made, or is about to
    unmap by itself, and the books would no longer agree with the kernel's.

    Lifetime:
        Nothing to close.
    Locking:
        No lock is held over the block of either method. Who waits, waits for a system call to come back, as it would
        in the kernel, on the container's own lock; so there is no deadline. Neither may be entered from within.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._alone = False
        self._waiting = 0
        self._both = (_Together(self), _Alone(self))

    def together(self) -> _Together:
        """Give a block that runs beside others of its kind."""
        return self._both[0]

    def alone(self) -> _Alone:
        """Give a block that runs when all others have ended, and lets none begin meanwhile."""
        return self._both[1]

    def _enter(self) -> None:
        with self._changed:
            while self._alone:
                self._wait()
            self._inside += 1

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._waiting and not self._inside:
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            while self._alone:
                self._wait()
            self._alone = True
            try:
                while self._inside:
                    self._wait()
            except BaseException:
                self._reopen()
                raise

    def _open(self) -> None:
        with self._changed:
            self._reopen()

    def _reopen(self) -> None:
        self._alone = False
        if self._waiting:
            self._changed.notify_all()

    def _wait(self) -> None:
        self._waiting += 1
        try:
            self._changed.wait()
        finally:
            self._waiting -= 1


# Without state of their own, so that one object serves every thread; a generator for each block would cost more than
# the kernel's share of a small mapping.


class _Together:
    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate._enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._leave()


class _Alone:
    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate._close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._open()
