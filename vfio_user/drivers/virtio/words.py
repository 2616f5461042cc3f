"""Little-endian words in memory that a device shares, on machines of either byte order."""

from __future__ import annotations

import sys
from typing import Final, Literal, Protocol

__all__ = ["SwappedWords", "Words", "little_endian"]

_SIZES: Final = {"H": 2, "I": 4}


class Words(Protocol):
    """Words by their place; each is read or written by one access of its width."""

    def __getitem__(self, place: int, /) -> int:
        """Read a word."""

    def __setitem__(self, place: int, value: int, /) -> None:
        """Write a word."""


class SwappedWords:
    """Words of the byte order that is not the machine's.

    Lifetime:
        Borrows the memory.
    Locking:
        None.
    """

    __slots__ = ("_size", "_words")

    def __init__(self, memory: memoryview, form: Literal["H", "I"]) -> None:
        self._words = memory.cast(form)
        self._size = _SIZES[form]

    def __getitem__(self, place: int) -> int:
        return int.from_bytes(self._words[place].to_bytes(self._size, "little"), "big")

    def __setitem__(self, place: int, value: int) -> None:
        self._words[place] = int.from_bytes(value.to_bytes(self._size, "little"), "big")


def little_endian(memory: memoryview, form: Literal["H", "I"]) -> Words:
    """Give memory as little-endian words.

    Args:
        memory: bytes, aligned to a word.
        form: ``"H"`` for 16 bits, ``"I"`` for 32.
    """
    # On a little-endian machine it is what the interpreter has anyway, at no cost.
    return memory.cast(form) if sys.byteorder == "little" else SwappedWords(memory, form)
