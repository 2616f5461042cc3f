"""What is carried: content that follows from where it is and when it was written, made and checked by the block."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy

__all__ = ["BLOCK", "Content", "Rows"]

Rows: TypeAlias = "numpy.ndarray[Any, Any]"

BLOCK = 4096
"""Bytes that are stamped: each block says by itself which it is."""

_SHIFTS = 509  # a prime: contents repeat late, and never for the same block in successive turns


class Content:
    """Blocks of noise, each with a stamp: its place, and the turn in which it was written.

    A block that is stale, of another place, torn or damaged differs from what belongs there.

    Lifetime:
        A value; nothing to close.
    Locking:
        None is needed: nothing changes.
    """

    def __init__(self, seed: int, size: int = BLOCK) -> None:
        """Make the content of one stream; blocks have ``size`` bytes, a multiple of 8."""
        self._words = size // 8
        self._noise = numpy.random.default_rng(seed).integers(0, 1 << 64, self._words + _SHIFTS, "<u8")

    def fill(self, blocks: Rows, places: Rows, turn: int) -> None:
        """Write what belongs at some places in a turn.

        Args:
            blocks: 64-bit words, a row for each block.
            places: the place of each.
            turn: number of the turn, from 0 on.
        """
        blocks[:] = self._of(turn)
        blocks[:, 0], blocks[:, 1] = places, turn

    def wrong(self, blocks: Rows, places: Rows, turn: int) -> Rows:
        """Give the places whose blocks are not what `fill` wrote in that turn."""
        stamped = (blocks[:, 0] == places) & (blocks[:, 1] == turn)
        right = (blocks[:, 2:] == self._of(turn)[2:]).all(axis=1)
        found: Rows = places[~(stamped & right)]
        return found

    def _of(self, turn: int) -> Rows:
        shift = turn % _SHIFTS
        return self._noise[shift : shift + self._words]
