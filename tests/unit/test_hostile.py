"""Whatever the kernel answers, and whoever writes what is read: a named error, or what can be relied on."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS, run

#: Words that mean something, among words that do not: counts, offsets, flags, the ends of ranges.
WORDS = st.sampled_from([0, 1, 2, 3, 8, 16, 24, 32, 48, 64, 0x1000, 0xFFFFFFFF]) | st.integers(0, (1 << 32) - 1)
REPLIES = st.builds(
    lambda verdict, words, tail: bytes([verdict]) + struct.pack(f"={len(words)}I", *words) + tail,
    st.integers(0, 255),
    st.lists(WORDS, max_size=40),
    st.binary(max_size=64),
)


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """Take a good reply, and write over a few of its bytes."""
    data = bytearray(seed)
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        data[at] = value
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


@pytest.mark.parametrize("name", TARGETS)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_hostile_bytes(name: str, data: st.DataObject) -> None:
    seeds = [damaged(seed) for seed in SEEDS.get(name, ())]
    hostile = data.draw(st.one_of(*seeds, REPLIES, st.binary(max_size=600)))
    before = os.listdir("/proc/self/fd")
    run(TARGETS[name], hostile)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, seeds in SEEDS.items() for seed in seeds[:1]])
def test_what_is_damaged_was_good(name: str, seed: bytes) -> None:
    assert run(TARGETS[name], seed)
