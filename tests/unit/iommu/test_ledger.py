"""The ledger in C against a model of sets and lists."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vfio_user._mmio import Entry, Ledger
from vfio_user.errors import ArgumentError

PAGE = 0x1000


class Kept:
    """What an entry keeps alive."""


class Part(Entry):
    """An entry as subclasses make them."""

    __slots__ = ("__weakref__",)


class Model(RuleBasedStateMachine):
    """Entries never overlap: no two mappings do."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.held: dict[int, tuple[Entry, weakref.ref[Kept]]] = {}
        self.away: set[int] = set()
        self.others: list[object] = [None, 17, Part(0x99 * PAGE, PAGE)]

    @rule(page=st.integers(0, 40), size=st.integers(1, 3))
    def add(self, page: int, size: int) -> None:
        if any(
            first // PAGE < page + size and page < (first + entry.size) // PAGE
            for first, (entry, _) in self.held.items()
        ):
            return
        kept = Kept()
        entry = Part(page * PAGE, size * PAGE)
        self.ledger.add(entry, kept)
        self.held[page * PAGE] = entry, weakref.ref(kept)
        with pytest.raises(ArgumentError):
            self.ledger.add(entry, None)
        with pytest.raises(ArgumentError):
            entry.__init__(0, PAGE)  # type: ignore[misc]

    def choose(self, data: st.DataObject) -> list[object]:
        pool = [*(entry for entry, _ in self.held.values()), *self.others]
        return data.draw(st.lists(st.sampled_from(pool)))

    @rule(data=st.data(), merge=st.booleans())
    def runs(self, data: st.DataObject, merge: bool) -> None:
        items = self.choose(data)
        reached = {each for each in items if isinstance(each, Entry) and each in self.ledger and not each.suspended}
        runs, count, others = self.ledger.runs(items, merge)
        assert count == len(reached)
        assert others == [each for each in items if each not in reached]
        covered = [page for iova, size in runs for page in range(iova, iova + size, PAGE)]
        assert covered == sorted(page for each in reached for page in range(each.iova, each.iova + each.size, PAGE))
        if merge:
            ends = {iova + size for iova, size in runs}
            assert not any(iova in ends for iova, _ in runs), "what abuts is one"
        else:
            assert runs == sorted((each.iova, each.size) for each in reached)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        items = self.choose(data)
        gone = {each for each in items if isinstance(each, Entry) and each in self.ledger}
        dropped = self.ledger.end(iter(items))
        assert len(dropped) == 2 * len(gone)
        kept = [self.held.pop(each.iova)[1] for each in gone]
        self.away -= {each.iova for each in gone}
        assert all(each() is not None for each in kept), "who calls lets go of it"
        del dropped
        assert all(each() is None for each in kept)
        assert not any(each in self.ledger or each.suspended for each in gone)

    @rule()
    def end_all(self) -> None:
        kept = [each for _, each in self.held.values()]
        assert len(self.ledger.end_all()) == 2 * len(kept)
        assert all(each() is None for each in kept)
        self.held.clear()
        self.away.clear()

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), away=st.booleans())
    def suspend_or_resume(self, data: st.DataObject, away: bool) -> None:
        entry = data.draw(st.sampled_from([entry for entry, _ in self.held.values()]))
        (self.ledger.suspend if away else self.ledger.resume)(entry)
        (self.away.add if away else self.away.discard)(entry.iova)
        assert entry.suspended is away

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from([entry for entry, _ in self.held.values()]))
        assert self.ledger.claim(entry)
        assert not self.ledger.claim(entry)
        self.ledger.unclaim(entry)
        assert self.ledger.claim(entry)
        self.ledger.unclaim(entry)

    @invariant()
    def agrees(self) -> None:
        assert self.ledger.entries() == [entry for entry, _ in self.held.values()]
        assert len(self.ledger) == len(self.held)
        assert self.ledger.num_suspended == len(self.away)
        assert self.ledger.num_bytes == sum(
            entry.size for first, (entry, _) in self.held.items() if first not in self.away
        )
        assert all(entry in self.ledger for entry, _ in self.held.values())
        assert all(kept() is not None for _, kept in self.held.values())
        assert not any(other in self.ledger for other in self.others)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase


@pytest.mark.parametrize("arrangement", ["up", "down", "shuffled"])
def test_order_does_not_matter(arrangement: str) -> None:
    ledger = Ledger()
    entries = [Part(number * PAGE, PAGE) for number in range(1000)]
    for entry in entries:
        ledger.add(entry, None)
    if arrangement == "down":
        entries.reverse()
    elif arrangement == "shuffled":
        random.Random(3).shuffle(entries)
    assert ledger.runs(entries, True) == ([(0, 1000 * PAGE)], 1000, [])
    assert ledger.runs(entries + entries, True) == ([(0, 1000 * PAGE)], 1000, [])
    assert len(ledger.runs(entries, False)[0]) == 1000


def test_the_highest_address() -> None:
    ledger = Ledger()
    entries = [Part((1 << 64) - PAGE, PAGE), Part((1 << 64) - 2 * PAGE, PAGE), Part(0, PAGE)]
    for entry in entries:
        ledger.add(entry, None)
    assert ledger.runs(entries, True)[0] == [(0, PAGE), ((1 << 64) - 2 * PAGE, 2 * PAGE)]


@pytest.mark.parametrize(
    ("iova", "size", "error"),
    [
        (0, 0, ArgumentError),
        (-1, 1, ArgumentError),
        (1 << 64, 1, ArgumentError),
        (0, 1 << 64, ArgumentError),
        ((1 << 64) - 1, 2, ArgumentError),
        ("a", 1, TypeError),
        (1, None, TypeError),
    ],
)
def test_ranges_that_can_not_be(iova: int, size: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        Part(iova, size)


def test_what_is_no_entry_is_refused() -> None:
    ledger = Ledger()
    with pytest.raises(TypeError):
        ledger.add(None, None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no range"):
        ledger.add(Part.__new__(Part), None)
    with pytest.raises(TypeError):
        Part(iova=0, size=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ledger.runs(3, True)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ledger.end(3)  # type: ignore[arg-type]
    assert not ledger.claim(Part(0, 1))
    ledger.suspend(None)  # type: ignore[arg-type]
    assert len(ledger) == 0


def test_entries_of_another_ledger_are_others() -> None:
    first, second = Ledger(), Ledger()
    entry = Part(0, PAGE)
    first.add(entry, None)
    assert second.runs([entry], True) == ([], 0, [entry])
    assert second.end([entry]) == []
    assert entry in first


def test_the_collector_takes_cycles_apart() -> None:
    ledger = Ledger()
    entries = [Part(number * PAGE, PAGE) for number in range(3)]
    gone = [weakref.ref(entry) for entry in entries]
    for entry in entries:
        ledger.add(entry, [entry, ledger])
    del ledger, entries, entry
    gc.collect()
    assert [each() for each in gone] == [None] * 3
