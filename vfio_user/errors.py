"""Exceptions of the package.

Everything that this package raises on purpose is a `VfioError`::

    VfioError
    ├── ArgumentError (ValueError)          a value that can never be right
    │   ├── AlignmentError                  offset, address or size not a multiple of what is needed
    │   └── BoundsError (IndexError)        outside the region, buffer, ring or table
    ├── ClosedError                         the handle was closed before
    │   └── ForkedError                     the handle belongs to the parent process
    ├── ZappedError                         device memory was taken away (reset, low power, close)
    │   ├── MemoryDisabledError             the kernel refuses the access: memory decoding off, or D3
    │   └── DeviceGoneError                 the device does not answer any more
    ├── LockOrderError                      a lock was asked for in an order that could deadlock
    ├── BusyError                           somebody else has it
    │   ├── InUseError                      a device to be bound is in use through its present driver (``uses``)
    │   └── MemoryLockBusyError             readers did not leave the memory lock (``holders``)
    ├── BindError                           a device could not be given to a driver, or put back
    ├── LeaseError                          a broker does not lend a device
    ├── JournalError                        the journal of bound devices can't be trusted or read
    ├── MigrationError                      a device did not take a step of a migration (``state``)
    ├── DeadlineError (TimeoutError)        a wait reached its deadline
    ├── UnsupportedError                    kernel or device lacks a feature; names which
    ├── MalformedReplyError                 the kernel's reply does not follow its own layout
    ├── IovaError                           IOVA not usable: taken, outside of the ranges, or none left
    ├── NotViableError                      the group holds a device of another driver (``culprits``)
    ├── NotOwnedError                       a reset affects a device that is not ours (``addresses``)
    ├── ResetBlockedError                   the kernel refuses a reset because of a neighbour (``culprits``)
    ├── ResetFailedError                    a reset was tried and failed; the device needs another one
    ├── NotRestoredError (ExceptionGroup)   a reset was done, but not all came back after it
    └── VfioOSError (OSError)               a system call failed; ``errno`` is kept
        └── VfioIoctlError                  an ioctl failed; ``request`` and ``device`` are kept

Catch `VfioError` for all of them; every message says what was wrong and, where that is known, what to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

__all__ = [
    "AlignmentError",
    "ArgumentError",
    "BindError",
    "BoundsError",
    "BusyError",
    "ClosedError",
    "DeadlineError",
    "DeviceGoneError",
    "ForkedError",
    "InUseError",
    "IovaError",
    "JournalError",
    "LeaseError",
    "LockOrderError",
    "MalformedReplyError",
    "MemoryDisabledError",
    "MemoryLockBusyError",
    "MigrationError",
    "NotOwnedError",
    "NotRestoredError",
    "NotViableError",
    "ResetBlockedError",
    "ResetFailedError",
    "UnsupportedError",
    "VfioError",
    "VfioIoctlError",
    "VfioOSError",
    "ZappedError",
]


class VfioError(Exception):
    """Base of all exceptions of this package."""


class ArgumentError(VfioError, ValueError):
    """Report a value that can never be right, before any system call is made."""


class AlignmentError(ArgumentError):
    """Report an offset, address or size that is not a multiple of what the operation needs."""


class BoundsError(ArgumentError, IndexError):
    """Report an access outside of a region, buffer, ring or table."""


class ClosedError(VfioError):
    """Report the use of a handle that was closed."""


class ForkedError(ClosedError):
    """Report the use of a handle in a forked child; only the process that opened a device may drive it."""


class ZappedError(VfioError):
    """Report an access to device memory that was taken away: reset under way, low power, or closed.

    Attributes:
        reason: why, one of `vfio_user.memory.ZapReason`.
    """

    reason: int = 0


class MemoryDisabledError(ZappedError):
    """Report that the kernel refused an access: memory decoding is off, or the device is in D3."""


class DeviceGoneError(ZappedError):
    """Report that the device does not answer any more: unplugged, or fallen off its bus."""


class LockOrderError(VfioError):
    """Report a lock that was asked for where waiting for it could deadlock.

    The order is: dev_set lock, memory locks, address-space lock. A thread that is inside of a read section
    (``with bar.access()``) can't take the same memory lock for writing.
    """


class BusyError(VfioError):
    """Report that somebody else has what was asked for."""


class InUseError(BusyError):
    """Report a device that is not taken from its driver because somebody uses it.

    Attributes:
        uses: ``(kind, words)`` of each use: ``("interface", "eth0 is up")``.
    """

    def __init__(self, message: str, uses: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.uses: tuple[tuple[str, str], ...] = tuple(uses)


class BindError(VfioError):
    """Report a device that could not be given to a driver, or not be put back."""


class JournalError(VfioError):
    """Report a journal of bound devices that can't be trusted or read."""


class LeaseError(VfioError):
    """Report that a broker does not lend a device."""


class MemoryLockBusyError(BusyError):
    """Report that readers did not leave a memory lock before the deadline.

    Attributes:
        holders: ``(native thread id, seconds)`` of each reader that was still in; the time is a lower bound.
    """

    def __init__(self, message: str, holders: Iterable[tuple[int, float]] = ()) -> None:
        super().__init__(message)
        self.holders: tuple[tuple[int, float], ...] = tuple(holders)


class MigrationError(VfioError):
    """Report a step of a migration that failed.

    Attributes:
        state: name of the migration state that the device is in since; empty when it is not known.
    """

    def __init__(self, message: str, state: str = "") -> None:
        super().__init__(message)
        self.state = state


class DeadlineError(VfioError, TimeoutError):
    """Report that a wait reached its deadline.

    Attributes:
        step: for a register program, the index of the poll that did not come true; otherwise `None`.
        results: for a register program, what was read before it.
    """

    step: int | None = None
    results: Sequence[int] = ()


class UnsupportedError(VfioError):
    """Report a feature that the kernel or the device lacks."""


class MalformedReplyError(VfioError):
    """Report a reply of the kernel that does not follow its own layout (bounds, cycles, sizes)."""


class IovaError(VfioError):
    """Report an IOVA that can't be used: taken already, outside of the usable ranges, or none left."""


class NotViableError(VfioError):
    """Report a group that can't be used because one of its devices is bound to another driver.

    Attributes:
        culprits: ``(address, driver)`` of each device in the way.
    """

    def __init__(self, message: str, culprits: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.culprits: tuple[tuple[str, str], ...] = tuple(culprits)


class NotOwnedError(VfioError):
    """Report that a reset affects devices which this process does not own.

    Attributes:
        addresses: the devices that are affected and not owned.
    """

    def __init__(self, message: str, addresses: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.addresses: tuple[str, ...] = tuple(addresses)


class ResetBlockedError(VfioError):
    """Report that a neighbour keeps devices from being reset together: it is not bound to a VFIO driver.

    Attributes:
        culprits: ``(address, driver)`` of each device in the way; the driver is empty where there is none.
    """

    def __init__(self, message: str, culprits: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.culprits: tuple[tuple[str, str], ...] = tuple(culprits)


class ResetFailedError(VfioError):
    """Report a reset that was tried and failed: its devices are switched off, and need another reset.

    Their memory stays away until then (accessors raise `ZappedError`, views read all-ones); ``vdev.health`` says so.

    Attributes:
        addresses: the devices that need another reset.
    """

    def __init__(self, message: str, addresses: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.addresses: tuple[str, ...] = tuple(addresses)


class NotRestoredError(VfioError, ExceptionGroup[Exception]):
    """Report that device memory was taken away and given back, but that not all else came back with it.

    The device itself is usable. ``exceptions`` has what is not: a driver that raised in `reset_prepare` or
    `reset_done`, a peer-to-peer mapping, an interrupt.
    """

    def derive(self, excs: Sequence[Exception], /) -> NotRestoredError:  # type: ignore[override]  # not generic
        """Make a group of some of the exceptions, for ``except*``."""
        return NotRestoredError(self.message, excs)


class VfioOSError(VfioError, OSError):
    """Report a failed system call; ``errno`` and ``strerror`` are those of the kernel.

    Args:
        errno_: the kernel's error number, positive.
        what: what was tried, in words: ``"open /dev/vfio/7"``.
        hint: what the user can do about it; may be empty.
    """

    def __init__(self, errno_: int, what: str, hint: str = "") -> None:
        super().__init__(errno_, os.strerror(errno_))
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        name = _errno_name(self.errno or 0)
        text = f"{self.what}: {self.strerror} ({name})"
        return f"{text}. {self.hint}" if self.hint else text


class VfioIoctlError(VfioOSError):
    """Report a failed ioctl.

    Args:
        errno_: the kernel's error number, positive.
        request: name of the request as the uAPI has it: ``"VFIO_DEVICE_GET_INFO"``.
        device: the device, group or container that it was asked of; may be empty.
        hint: what the user can do about it; may be empty.
    """

    def __init__(self, errno_: int, request: str, device: str = "", hint: str = "") -> None:
        super().__init__(errno_, f"{request} on {device}" if device else request, hint)
        self.request = request
        self.device = device


def _errno_name(number: int) -> str:
    import errno

    return errno.errorcode.get(number, str(number))
