"""File descriptors with one owner."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from types import TracebackType
from typing import Self

from vfio_user.errors import ClosedError, ForkedError, VfioOSError

__all__ = ["OwnedFd", "readable"]


class OwnedFd:
    """Own a file descriptor: close it exactly once, and refuse its use afterwards.

    Lifetime:
        Closed by `close()` or by leaving the ``with`` block. A forked child closes its copies at once: a copy that
        stays open keeps the device busy and makes its unbind hang. ``exec`` closes them through ``O_CLOEXEC``.
    Locking:
        `close()` may be called from any thread, and more than once.
    """

    __slots__ = ("__weakref__", "_fd", "_forked", "name")

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._forked = False
        self.name = name
        """What the descriptor is, for messages: ``"/dev/vfio/7"``."""
        with _live_lock:
            _live.add(self)

    @classmethod
    def open(cls, path: str, flags: int = os.O_RDWR, *, hint: str = "") -> Self:
        """Open a path.

        Raises:
            VfioOSError: the open failed; ``hint`` is part of its message.
        """
        try:
            return cls(os.open(path, flags | os.O_CLOEXEC), path)
        except OSError as error:
            raise VfioOSError(error.errno or 0, f"open {path}", hint) from error

    def fileno(self) -> int:
        """Give the descriptor's number.

        Raises:
            ClosedError: it was closed.
            ForkedError: this is a forked child of the process that opened it.
        """
        if self._fd < 0:
            if self._forked:
                raise ForkedError(f"{self.name} was opened by the parent process; open it again in this one")
            raise ClosedError(f"{self.name} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self._fd < 0

    @property
    def forked(self) -> bool:
        """Tell whether the parent process opened it; a forked child's copy is closed."""
        return self._forked

    def close(self) -> None:
        """Close the descriptor; closing twice does nothing."""
        # The number is forgotten before it is closed: the kernel hands it out again at once, and a second close by
        # another thread would then hit a stranger's file.
        with _live_lock:
            fd, self._fd = self._fd, -1
            _live.discard(self)
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """Give the descriptor away: return its number and own it no longer."""
        number = self.fileno()
        with _live_lock:
            self._fd = -1
            _live.discard(self)
        return number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<OwnedFd {self.name} {'closed' if self.closed else self._fd}>"


async def readable(fd: int) -> None:
    """Let the event loop run until a file can be read."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await future
    finally:
        loop.remove_reader(fd)


_live: weakref.WeakSet[OwnedFd] = weakref.WeakSet()
# Re-entrant: the garbage collector may finalize (and so close) one descriptor while another is being registered.
_live_lock = threading.RLock()


def _close_in_child() -> None:
    global _live_lock
    _live_lock = threading.RLock()
    for owned in list(_live):
        fd, owned._fd, owned._forked = owned._fd, -1, True
        if fd >= 0:
            os.close(fd)


os.register_at_fork(after_in_child=_close_in_child)
