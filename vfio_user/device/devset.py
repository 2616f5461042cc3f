"""Device sets: the devices that are reset together, and the lock that keeps their resets apart."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Self

from vfio_user.errors import BusyError, LockOrderError
from vfio_user.memory import require_no_section

if TYPE_CHECKING:
    from vfio_user.device.base import VfioDevice

__all__ = ["DeviceSet"]

_OPEN_TIMEOUT = 30.0


class DeviceSet:
    """The devices of one reset domain that this process has open.

    The bus says by a key which devices belong together; there is one set for each key. The first device to open and
    the last to close call their ops ``open_first`` and ``close_last``, under the set's lock.

    Lifetime:
        Comes with its first device, and goes with the last reference to it. Devices join when they are opened and
        leave when they are closed.
    Locking:
        Its lock is the first of the order ``dev_set lock, memory locks, address-space lock``. Opening, closing and
        resetting take it. A thread that has it may take it again: a driver's reset hook may open and close devices.
    """

    _sets: ClassVar[weakref.WeakValueDictionary[Hashable, DeviceSet]] = weakref.WeakValueDictionary()
    _sets_lock = threading.Lock()

    def __init__(self, key: Hashable) -> None:
        """Make a set by itself; `of` gives the one that is in use."""
        self.key = key
        """What its devices have in common; the bus knows what it means."""
        self._lock = threading.RLock()
        self._owner: tuple[int, threading.Thread | None] = (0, None)
        self._last_told = False
        self._devices: weakref.WeakSet[VfioDevice] = weakref.WeakSet()

    @classmethod
    def of(cls, key: Hashable) -> Self:
        """Give the set of a key; the same object as long as anybody has it."""
        with cls._sets_lock:
            found = cls._sets.get((cls, key))
            if not isinstance(found, cls):
                found = cls(key)
                cls._sets[cls, key] = found
            return found

    @property
    def devices(self) -> tuple[VfioDevice, ...]:
        """The devices in it, ordered by name."""
        return tuple(sorted(self._devices, key=lambda each: each.name))

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Keep devices from joining, leaving and being reset in a ``with`` block.

        Raises:
            BusyError: somebody else had the lock for ``timeout`` seconds; names the thread.
            LockOrderError: this thread is inside of a read section, or has a memory lock of the set for writing.
        """
        require_no_section("resetting, opening or closing devices")
        for each in self._devices if self._owner[0] != threading.get_ident() else ():
            if each.window is not None and each.window.write_locked():
                raise LockOrderError(f"this thread has the memory lock of {each.name}: the set's lock comes first")
        if not self._lock.acquire(timeout=max(0.0, timeout)):
            raise BusyError(
                f"the devices {', '.join(each.name for each in self.devices) or self.key} are being reset, opened or "
                f"closed by {self._who()}, which did not finish within {timeout:g} s"
            )
        before = self._owner
        self._owner = (threading.get_ident(), threading.current_thread())
        try:
            yield
        finally:
            self._owner = before
            self._lock.release()

    def join(self, vdev: VfioDevice, register: Callable[[], None], timeout: float = _OPEN_TIMEOUT) -> None:
        """Take a device in, and let it register under the lock; a device that fails to is not in the set.

        Raises:
            BusyError: see `locked`; also what the ops and ``register`` raise.
        """
        with self.locked(timeout):
            first = not self._devices
            if first:
                vdev.ops.open_first(vdev)
                self._last_told = False
            try:
                register()
                self._devices.add(vdev)
            except BaseException:
                if first:
                    vdev.ops.close_last(vdev)
                raise

    def leave(self, vdev: VfioDevice, close: Callable[[], None], timeout: float) -> None:
        """Let a device close under the lock; it is out of the set when it is closed.

        Raises:
            BusyError: see `locked`; nothing is closed then. Also what ``close`` and the ops raise.
        """
        with self.locked(timeout):
            if self.devices == (vdev,) and not self._last_told:
                self._last_told = True  # once, also when the device can't be closed yet and is tried again
                vdev.ops.close_last(vdev)
            try:
                close()
            finally:
                if vdev.closed:
                    self._devices.discard(vdev)

    def _who(self) -> str:
        thread = self._owner[1]
        return "a thread that has left by now" if thread is None else f"thread {thread.name} ({thread.native_id})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(each.name for each in self.devices) or 'empty'}>"


def _forget_owners() -> None:
    """In a forked child: the threads that had locks do not exist, and its devices are the parent's."""
    DeviceSet._sets_lock = threading.Lock()
    for each in list(DeviceSet._sets.values()):
        each._lock = threading.RLock()
        each._owner = (0, None)


os.register_at_fork(after_in_child=_forget_owners)
