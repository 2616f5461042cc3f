"""Exceptions of the guest runner.

::

    GuestError (VfioError)
    ├── GuestSpecError (ArgumentError)     a guest that can't be built: unknown device, bad size, unknown
    kernel ├── GuestSetupError                    something the guest needs can't be had: QEMU, kernel,
    package └── GuestCrashedError                  the guest ended without a result; shows the end of its
        console └── GuestTimeoutError (TimeoutError)   the guest was stopped at its deadline
"""

from __future__ import annotations

from vfio_user.errors import ArgumentError, VfioError

__all__ = ["GuestCrashedError", "GuestError", "GuestSetupError", "GuestSpecError", "GuestTimeoutError"]


class GuestError(VfioError):
    """Base of the exceptions of the guest runner."""


class GuestSpecError(GuestError, ArgumentError):
    """Report a guest that can't be built from its description; the message names the part."""


class GuestSetupError(GuestError):
    """Report that something which the guest needs can't be had; the message says what to install."""


class GuestCrashedError(GuestError):
    """Report a guest that ended without a result: a panic, a crash of QEMU, or a lost exit code.

    Attributes:
        reason: what happened, in one line.
        console: the guest's serial console, whole.
    """

    #: Lines of the console that the message shows.
    SHOWN_LINES = 40

    def __init__(self, reason: str, console: str = "") -> None:
        tail = "\n".join(console.rstrip().splitlines()[-self.SHOWN_LINES :])
        shown = f"\n--- end of the guest's console ---\n{tail}\n---" if tail else " (its console is empty)"
        super().__init__(f"{reason}{shown}")
        self.reason = reason
        self.console = console


class GuestTimeoutError(GuestCrashedError, TimeoutError):
    """Report a guest that did not end before its deadline, and was stopped."""
