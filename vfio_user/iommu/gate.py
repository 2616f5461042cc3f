"""Let many calls in together, or one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """Keep calls that concern one mapping apart from a call that concerns all of them.

    Without it `AddressSpace.unmap_all` could take away a mapping that another thread has just made, or is about to
    unmap by itself, and the books would no longer agree with the kernel's.

    Lifetime:
        Nothing to close.
    Locking:
        No lock is held over the block of either method. Who waits, waits for a system call to come back, as it would
        in the kernel, on the container's own lock; so there is no deadline. Neither may be entered from within.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block beside others of its kind."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run a block when all others have ended, and let none begin meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._inside == 0)
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
