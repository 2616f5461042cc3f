"""Exceptions of the virtio drivers.

All of them are `VirtioError`, hence `VfioError`, and most are one of the package's general errors too::

    VirtioError (VfioError)
    ├── VirtioStatusError              the device completed a request with an error status
    ├── VirtioAbortedError             a request in flight was ended by a reset, a removal or a broken queue
    ├── VirtioQueueFullError (BusyError)
    │                                  a queue has too few free descriptors
    ├── VirtioRingError (MalformedReplyError)
    │                                  the device wrote something into a ring that can't be
    ├── VirtioDeadlineError (DeadlineError)
    │                                  the device did not answer in time
    ├── VirtioNeedsResetError          the device says that it can't go on (DEVICE_NEEDS_RESET)
    ├── VirtioNotRunningError          the driver is not started, or a reset is under way
    └── VirtioUnsupportedError (UnsupportedError)
                                       the device lacks what is needed, or what was asked for
"""

from __future__ import annotations

from vfio_user.errors import BusyError, DeadlineError, MalformedReplyError, UnsupportedError, VfioError

__all__ = [
    "VirtioAbortedError",
    "VirtioDeadlineError",
    "VirtioError",
    "VirtioNeedsResetError",
    "VirtioNotRunningError",
    "VirtioQueueFullError",
    "VirtioRingError",
    "VirtioStatusError",
    "VirtioUnsupportedError",
]


class VirtioError(VfioError):
    """Base of the virtio drivers' exceptions."""


class VirtioStatusError(VirtioError):
    """Report a request that the device completed with an error status.

    Attributes:
        status: the status as the device wrote it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[VirtioStatusError], tuple[str, int]]:
        return type(self), (str(self), self.status)


class VirtioAbortedError(VirtioError):
    """Report a request in flight that was ended by a reset or removal: it may or may not have been executed.

    Its memory is not touched by the device any more.
    """


class VirtioQueueFullError(VirtioError, BusyError):
    """Report that a queue has too few free descriptors: reap used buffers first, or use a longer queue."""


class VirtioRingError(VirtioError, MalformedReplyError):
    """Report a used ring that can't be true; the queue takes nothing more until the device is reset.

    Driver and device disagree on what is in flight, so memory may be in use by the device that the driver takes for
    free.
    """


class VirtioDeadlineError(VirtioError, DeadlineError):
    """Report a device or request that did not answer before its deadline.

    A request whose wait ended so is still in flight: the device may still access its memory.
    """


class VirtioNeedsResetError(VirtioError):
    """Report that the device has set DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2): only a reset brings it back."""


class VirtioNotRunningError(VirtioError):
    """Report the use of a driver that is not running: not started, resetting, failed, or stopped."""


class VirtioUnsupportedError(VirtioError, UnsupportedError):
    """Report a feature that the device lacks."""
