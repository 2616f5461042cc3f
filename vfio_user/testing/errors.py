"""Exceptions of the guest runner.

::

    GuestError (VfioError)
    ├── GuestSpecError (ArgumentError)         a guest that can't be built: unknown device, bad size
    ├── GuestSetupError                        something the guest needs can't be had: QEMU, a kernel
    └── GuestCrashedError                      the guest ended without a result; shows its console's end
        └── GuestTimeoutError (TimeoutError)   the guest was stopped at its deadline
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

    #: Lines of the console that the message shows: these at its end, and from a panic on when that is longer.
    SHOWN_LINES = 40
    PANIC_LINES = 200
    PANIC = "Kernel panic - "

    def __init__(self, reason: str, console: str = "") -> None:
        tail = "\n".join(self._end(console.rstrip().splitlines()))
        shown = f"\n--- end of the guest's console ---\n{tail}\n---" if tail else " (its console is empty)"
        super().__init__(f"{reason}{shown}")
        self.reason = reason
        self.console = console

    @classmethod
    def _end(cls, lines: list[str]) -> list[str]:
        last = lines[-cls.PANIC_LINES :]
        panic = next((index for index, line in enumerate(last) if cls.PANIC in line), len(last))
        return last[min(panic, max(0, len(last) - cls.SHOWN_LINES)) :]


class GuestTimeoutError(GuestCrashedError, TimeoutError):
    """Report a guest that did not end before its deadline, and was stopped."""
