"""Sets of memory locks: all or none, no deadlock, and an error that names device and holder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vfio_user.errors import ArgumentError, ClosedError, LockOrderError, MemoryLockBusyError
from vfio_user.memory import LockSet, MemoryLock

from .conftest import Bar, Thread
from .test_lock import Reader

Spawn = Callable[[Callable[[], object]], Thread]


@pytest.fixture
def bars(make_bar: Callable[..., Bar]) -> list[Bar]:
    return [make_bar(name=f"0000:0{bus}:00.0") for bus in (3, 1, 2)]


def test_all_in_the_order_of_names(bars: list[Bar]) -> None:
    locks = LockSet(bar.window for bar in bars)
    assert [window.name for window in locks.windows] == ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]
    assert repr(locks) == "<LockSet of 0000:01:00.0, 0000:02:00.0, 0000:03:00.0>"
    with locks.writing(1):
        assert all(bar.window.write_locked() for bar in bars)
        with locks.writing(1):
            pass
        assert all(bar.window.write_locked() for bar in bars)
    assert not any(bar.window.write_locked() for bar in bars)


def test_none_when_one_is_busy(bars: list[Bar], spawn: Spawn) -> None:
    locks = LockSet(bar.window for bar in bars)
    reader = Reader(bars[2], spawn)
    start = time.monotonic()
    with (
        pytest.raises(MemoryLockBusyError, match=rf"0000:02:00\.0 was busy.*thread {reader.tid}") as caught,
        locks.writing(0.1),
    ):
        raise AssertionError
    assert 0.1 <= time.monotonic() - start < 2
    ((tid, held),) = caught.value.holders
    assert tid == reader.tid
    assert held > 0.05
    assert not any(bar.window.write_locked() for bar in bars)
    assert all(bar.window.holders() == [] for bar in bars if bar is not bars[2])
    reader.leave()
    with locks.writing(0):
        pass


def test_a_set_waits_for_readers_that_leave(bars: list[Bar], spawn: Spawn) -> None:
    reader = Reader(bars[0], spawn)
    threading.Timer(0.05, reader.leave).start()
    with LockSet(bar.window for bar in bars).writing(10):
        pass


def test_a_failure_half_way_unwinds(bars: list[Bar]) -> None:
    bars[0].window.close()
    with pytest.raises(ClosedError), LockSet(bar.window for bar in bars).writing(1):
        raise AssertionError
    assert not any(bar.window.write_locked() for bar in bars[1:])


def test_a_block_that_raises_unwinds(bars: list[Bar]) -> None:
    with pytest.raises(KeyError), LockSet(bar.window for bar in bars).writing(1):
        raise KeyError
    assert not any(bar.window.write_locked() for bar in bars)


def test_not_inside_of_a_section(bars: list[Bar], make_bar: Callable[..., Bar]) -> None:
    other = make_bar(name="other")
    with other.mmio.access(), pytest.raises(LockOrderError), LockSet([bars[0].window]).writing(1):
        raise AssertionError


def test_nonsense(bars: list[Bar]) -> None:
    with pytest.raises(ArgumentError, match="twice"):
        LockSet([bars[0].window, bars[0].window])
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="timeout"), LockSet([bars[0].window]).writing(wrong):
            raise AssertionError
    with LockSet([]).writing(0):
        pass


def test_overlapping_sets_do_not_deadlock(bars: list[Bar], spawn: Spawn) -> None:
    """Sets in every order, single locks and readers against each other; everybody gets through."""
    stop = threading.Event()
    counts = [0] * 6

    def take(index: int, windows: list[Bar]) -> None:
        locks = LockSet(bar.window for bar in windows)
        while not stop.is_set():
            with locks.writing(20):
                counts[index] += 1
            time.sleep(0)

    def one(index: int) -> None:
        while not stop.is_set():
            with MemoryLock(bars[1].window).writing(20):
                counts[index] += 1
            time.sleep(0)

    def read(index: int) -> None:
        while not stop.is_set():
            with bars[0].mmio.access(), bars[2].mmio.access():
                counts[index] += 1
            time.sleep(0)

    threads = [
        spawn(lambda: take(0, bars)),
        spawn(lambda: take(1, bars[::-1])),
        spawn(lambda: take(2, bars[:2])),
        spawn(lambda: take(3, bars[1:])),
        spawn(lambda: one(4)),
        spawn(lambda: read(5)),
    ]
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.finish(30)
    assert all(counts), counts
