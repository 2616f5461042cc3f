"""What state a device is in, as far as this process knows."""

from __future__ import annotations

import enum

__all__ = ["DeviceHealth"]


class DeviceHealth(enum.Enum):
    """State of a device: ``vdev.health``."""

    OK = "ok"
    """It works, as far as is known."""
    MEMORY_OFF = "memory off"
    """Its memory is away on purpose: decoding was switched off, or it is in low power. Switching it on brings it
    back."""
    REFUSED = "memory refused"
    """The kernel answered an access with SIGBUS; reads give all-ones since. ``revive()`` finds out why, and brings the
    memory back when it can be."""
    RESETTING = "resetting"
    """A reset is under way."""
    NEEDS_RESET = "needs reset"
    """A reset failed: the device is switched off (no decoding, no bus mastering, no interrupts) until one succeeds."""
    GONE = "gone"
    """It does not answer any more: unplugged, or fallen off its bus. Close it."""
