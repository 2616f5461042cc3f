"""Interrupt coalescing by the controller: one interrupt for many completions (NVMe Base 2.0, 5.27.1.6, 5.27.1.7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vfio_user.errors import BoundsError

__all__ = ["InterruptCoalescing"]

_STEP = 100e-6
_MOST_THRESHOLD = 256
_MOST_STEPS = 255


@dataclass(frozen=True, slots=True)
class InterruptCoalescing:
    """How a controller gathers completions before it interrupts."""

    threshold: int
    """Completions of one vector that end the gathering: 1 to 256."""
    delay: float
    """Longest delay of an interrupt for that, seconds: up to 0.0255 in steps of 100 µs; 0 gathers nothing."""

    @classmethod
    def from_int(cls, value: int) -> InterruptCoalescing:
        """Decode the feature's 32 bits."""
        return cls(threshold=(value & 0xFF) + 1, delay=(value >> 8 & 0xFF) * _STEP)

    def to_int(self) -> int:
        """Give the feature's 32 bits; a delay between two steps becomes the longer one.

        Raises:
            BoundsError: a number does not fit.
        """
        if not 1 <= self.threshold <= _MOST_THRESHOLD:
            raise BoundsError(f"threshold is {self.threshold}: give 1 to {_MOST_THRESHOLD} completions")
        if not 0 <= self.delay <= _MOST_STEPS * _STEP:
            raise BoundsError(f"delay is {self.delay}: give 0 to {_MOST_STEPS * _STEP:g} seconds")
        # A hair less, since the steps are no round numbers in binary.
        return math.ceil(self.delay / _STEP - 1e-6) << 8 | self.threshold - 1
