"""Words that a device shares: little-endian whatever the machine is, and the other order where that is asked for."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.drivers.virtio.words import SwappedWords, little_endian

FORMS: list[tuple[Literal["H", "I"], int]] = [("H", 2), ("I", 4)]


@pytest.mark.parametrize(("form", "size"), FORMS)
@given(number=st.integers(0, 0xFFFF_FFFF))
def test_words_are_little_endian(form: Literal["H", "I"], size: int, number: int) -> None:
    number &= (1 << 8 * size) - 1
    memory = memoryview(bytearray(16))
    words = little_endian(memory, form)
    words[1] = number
    assert bytes(memory) == bytes(size) + number.to_bytes(size, "little") + bytes(16 - 2 * size)
    assert words[1] == number


@pytest.mark.parametrize(("form", "size"), FORMS)
@given(number=st.integers(0, 0xFFFF_FFFF))
def test_swapped_words_are_the_machines_words_backwards(form: Literal["H", "I"], size: int, number: int) -> None:
    number &= (1 << 8 * size) - 1
    memory = memoryview(bytearray(16))
    swapped, native = SwappedWords(memory, form), memory.cast(form)
    swapped[1] = number
    assert native[1].to_bytes(size, "little") == number.to_bytes(size, "big")
    assert swapped[1] == number
    assert (swapped[0], swapped[2]) == (0, 0)


def test_a_word_that_does_not_fit() -> None:
    with pytest.raises(OverflowError):
        SwappedWords(memoryview(bytearray(4)), "H")[0] = 1 << 16
