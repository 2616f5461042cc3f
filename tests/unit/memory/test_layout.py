"""Where regions lie in a window."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import ArgumentError
from vfio_user.memory import Window, layout

from .conftest import MIB, PAGE

GIB = 1 << 30


def sizes() -> st.SearchStrategy[int]:
    exact = st.sampled_from([1, 128, PAGE, 16 << 10, MIB, 2 * MIB, 32 * MIB, 256 * MIB, GIB, 16 * GIB])
    return exact | st.integers(1, 4 * GIB)


@given(st.dictionaries(st.integers(0, 20), sizes(), max_size=9))
def test_places(regions: dict[int, int]) -> None:
    plan = layout(regions)
    assert list(plan.places) == list(regions)
    ranges = sorted((plan.places[index], plan.places[index] + size) for index, size in regions.items())
    for (_, end), (start, _) in pairwise(ranges):
        assert end <= start, "regions overlap"
        assert start % PAGE == 0
        assert -(-end // PAGE) * PAGE <= start, "two regions share a page"
    assert all(start >= 0 and end <= plan.size for start, end in ranges)
    for index, size in regions.items():
        place = plan.places[index]
        # a multiple of the huge page in the window, whose address is one too: address and offset in the region agree
        assert place % PAGE == 0
        assert size < 2 * MIB or place % (2 * MIB) == 0
        assert size < GIB or (place % GIB == 0 and plan.align % GIB == 0)
    assert plan.align % (2 * MIB) == 0
    assert plan.size % (2 * MIB) == 0
    assert plan.size > 0


@given(st.dictionaries(st.integers(0, 5), st.integers(1, 64 * MIB), min_size=1, max_size=6))
def test_congruence_of_addresses(regions: dict[int, int]) -> None:
    plan = layout(regions)
    window = Window(plan.size, plan.align)
    for index, size in regions.items():
        offset = size - 1
        unit = 2 * MIB if size >= 2 * MIB else PAGE
        assert (window.address + plan.places[index] + offset) % unit == offset % unit
    window.close()


def test_little_is_lost() -> None:
    """Six regions of common sizes fit without gaps to speak of."""
    plan = layout({0: 16 << 10, 1: 128, 2: 256 * MIB, 3: 32 * MIB, 4: 2 * MIB, 5: 64 << 10})
    assert plan.size <= (256 + 32 + 2 + 2) * MIB


@pytest.mark.parametrize("size", [0, -1])
def test_regions_without_memory(size: int) -> None:
    with pytest.raises(ArgumentError, match="region 3"):
        layout({0: PAGE, 3: size})


def test_no_regions() -> None:
    plan = layout({})
    assert (plan.size, plan.align, dict(plan.places)) == (2 * MIB, 2 * MIB, {})
