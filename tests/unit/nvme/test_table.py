from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.drivers.nvme.table import CommandTable
from vfio_user.errors import BoundsError


@dataclass
class Item:
    command_id: int


def add(table: CommandTable[Item]) -> Item:
    place = table.peek()
    assert place is not None
    item = Item(place[1])
    table.add(item)
    return item


@settings(deadline=None)
@given(st.integers(1, 300) | st.just(65535), st.data())
def test_identifiers_are_unique_and_taken_back_once(capacity: int, data: st.DataObject) -> None:
    table: CommandTable[Item] = CommandTable(capacity)
    live: list[Item] = []
    old: set[int] = set()
    for _ in range(data.draw(st.integers(0, 60))):
        if data.draw(st.booleans()) and table.num_free:
            item = add(table)
            assert 0 <= item.command_id < 0xFFFF
            assert all(item.command_id != each.command_id for each in live)
            live.append(item)
        elif live:
            item = live.pop(data.draw(st.integers(0, len(live) - 1)))
            assert table.take(item.command_id) is item
            assert table.take(item.command_id) is None
            old.add(item.command_id)
        assert (table.num_in_flight, table.num_free) == (len(live), capacity - len(live))
    assert sorted(map(id, table.take_all())) == sorted(map(id, live))
    assert table.num_free == table.capacity == capacity


def test_full_means_full() -> None:
    table: CommandTable[Item] = CommandTable(3)
    items = [add(table) for _ in range(3)]
    assert table.peek() is None
    table.take(items[1].command_id)
    slot, command_id = table.peek() or (-1, -1)
    assert slot == 1
    assert command_id != items[1].command_id


def test_an_identifier_of_long_ago_is_not_known() -> None:
    table: CommandTable[Item] = CommandTable(63)
    seen = set()
    for _ in range(1 << 10):
        item = add(table)
        seen.add(item.command_id)
        table.take(item.command_id)
    assert len(seen) == 1 << 10
    assert table.take(0xFFFF) is None


@pytest.mark.parametrize("capacity", [0, 65536])
def test_capacity_is_bounded(capacity: int) -> None:
    with pytest.raises(BoundsError, match="1 to 65535"):
        CommandTable(capacity)
