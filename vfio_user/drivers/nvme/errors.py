"""Exceptions of the NVMe driver.

All of them are `NvmeError`, hence `VfioError`, and most are one of the package's general errors too::

    NvmeError (VfioError)
    ├── NvmeStatusError                the controller completed a command with an error status
    ├── NvmeAbortedError               a command in flight was ended by a reset, a shutdown or a removal
    ├── NvmeQueueFullError (BusyError) all entries of a queue are in flight
    ├── NvmeUnknownCompletionError (MalformedReplyError)
    │                                  a completion for a command that is not in flight
    ├── NvmeDeadlineError (DeadlineError)
    │                                  controller or command did not answer in time
    ├── NvmeFatalError                 the controller reports a fatal status (CSTS.CFS)
    ├── NvmeNotRunningError            the controller is not enabled: resetting, failed or removed
    └── NvmeUnsupportedError (UnsupportedError)
                                       the controller lacks what was asked for

A controller that reads as all-ones is `vfio_user.errors.DeviceGoneError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.errors import BusyError, DeadlineError, MalformedReplyError, UnsupportedError, VfioError

if TYPE_CHECKING:
    from vfio_user.drivers.nvme.status import Status

__all__ = [
    "NvmeAbortedError",
    "NvmeDeadlineError",
    "NvmeError",
    "NvmeFatalError",
    "NvmeNotRunningError",
    "NvmeQueueFullError",
    "NvmeStatusError",
    "NvmeUnknownCompletionError",
    "NvmeUnsupportedError",
]


class NvmeError(VfioError):
    """Base of the NVMe driver's exceptions."""


class NvmeStatusError(NvmeError):
    """Report a command that the controller completed with an error status.

    Args:
        what: the command in words: ``"read, queue 1, command 7"``.
        status: the status field of its completion.

    Attributes:
        status: the same.
    """

    def __init__(self, what: str, status: Status) -> None:
        hint = "" if status.dnr else "; the controller allows a retry"
        super().__init__(f"{what}: {status}{hint}")
        self.what = what
        self.status = status

    @property
    def sct(self) -> int:
        """Status code type."""
        return self.status.sct

    @property
    def sc(self) -> int:
        """Status code."""
        return self.status.sc

    @property
    def name(self) -> str:
        """The specification's name of the status."""
        return self.status.name

    @property
    def dnr(self) -> bool:
        """Do Not Retry."""
        return self.status.dnr

    @property
    def more(self) -> bool:
        """The Error Information log holds more (`NvmeController.error_log`)."""
        return self.status.more

    def __reduce__(self) -> tuple[type[NvmeStatusError], tuple[str, Status]]:
        return type(self), (self.what, self.status)


class NvmeAbortedError(NvmeError):
    """Report a command in flight that was ended by a reset, a shutdown or the removal of its queue.

    The command may or may not have been executed. Its memory is not touched by the device any more.
    """


class NvmeQueueFullError(NvmeError, BusyError):
    """Report that all entries of a queue are in flight: reap completions first, or use a deeper queue."""


class NvmeUnknownCompletionError(NvmeError, MalformedReplyError):
    """Report a completion for a command that is not in flight; the queue refuses further commands.

    Driver and controller disagree on what is in flight, so memory may be in use by the device that the
    driver takes for free. `NvmeController.reset` starts over.
    """


class NvmeDeadlineError(NvmeError, DeadlineError):
    """Report a controller or command that did not answer before its deadline.

    A command whose wait ended so is still in flight: the device may still access its memory.
    """


class NvmeFatalError(NvmeError):
    """Report that the controller set CSTS.CFS (NVMe Base 2.0, 3.1.3.6): only a reset brings it back."""


class NvmeNotRunningError(NvmeError):
    """Report the use of a controller or queue that is not running: resetting, failed, or removed."""


class NvmeUnsupportedError(NvmeError, UnsupportedError):
    """Report a feature that the controller lacks."""
