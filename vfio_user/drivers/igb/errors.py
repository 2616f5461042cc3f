"""Exceptions of the igb driver; those of frames and links are in `vfio_user.drivers.ethernet`."""

from __future__ import annotations

from vfio_user.errors import DeadlineError, VfioError

__all__ = ["IgbDeadlineError", "IgbError", "IgbNotRunningError"]


class IgbError(VfioError):
    """Base of the igb driver's exceptions."""


class IgbDeadlineError(IgbError, DeadlineError):
    """Report a controller, frame or copy that was not there before its deadline."""


class IgbNotRunningError(IgbError):
    """Report the use of a port that is not running: not started, resetting, failed, or stopped."""
