"""Many vectors at once: nothing is lost, one call reads all, busy ones are gathered, and closing disturbs nobody."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import cast
from unittest import mock

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.forking import in_child
from tests.unit.threads import eventually, start
from vfio_user import IrqPoller, IrqVector, PciDevice
from vfio_user._uapi import lib
from vfio_user.device import poller as module
from vfio_user.errors import ArgumentError, BoundsError, BusyError, ClosedError, DeadlineError, ForkedError


@pytest.fixture
def vectors(pci: PciDevice) -> tuple[IrqVector, ...]:
    return pci.irqs.msix.enable(4)


def test_poller_gives_each_with_its_count(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    with IrqPoller(vectors) as poller:
        for number in (3, 1, 1):
            pci.irqs.msix.trigger(number)
        assert {vector.number: count for vector, count in poller.wait(1.0)} == {3: 1, 1: 2}
        with pytest.raises(DeadlineError, match=r"no interrupt on any of 4 vectors within 0\.01 s"):
            poller.wait(0.01)


def test_poller_of_vectors_that_come_and_go(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    with IrqPoller() as poller:
        with pytest.raises(DeadlineError, match="any of 0 vectors"):
            poller.wait(0)
        for vector in (vectors[0], vectors[0], vectors[1]):
            poller.add(vector)
        poller.remove(vectors[1])
        poller.remove(vectors[1])
        pci.irqs.msix.trigger(0)
        pci.irqs.msix.trigger(1)
        assert poller.wait(1.0) == [(vectors[0], 1)]
        assert vectors[1].drain() == 1


def test_poller_leaves_closed_vectors_and_loses_no_count(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    with IrqPoller(vectors) as poller:
        for number in range(4):
            pci.irqs.msix.trigger(number)
        pci.irqs.msix.remove(0)
        pci.irqs.msix.remove(2)
        assert sorted(vector.number for vector, _ in poller.wait(1.0)) == [1, 3]
        poller.remove(vectors[0])


def test_poller_of_closed_vectors_only(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    with IrqPoller(vectors[:1]) as poller:
        pci.irqs.msix.disable()
        with pytest.raises((ClosedError, DeadlineError)):
            poller.wait(0.01)
        again = pci.irqs.msix.enable(1)
        poller.add(again[0])
        pci.irqs.msix.trigger(0)
        assert poller.wait(1.0) == [(again[0], 1)]


def test_poller_is_a_file_itself(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    with IrqPoller(vectors) as poller:
        pci.irqs.msix.trigger(0)
        assert select.select([poller], [], [], 1)[0] == [poller]
    for refused in (poller.fileno, lambda: poller.wait(0), lambda: poller.add(vectors[0])):
        with pytest.raises(ClosedError, match="this poller is closed"):
            refused()
    poller.close()
    assert vectors[0].drain() == 1, "the vectors are not closed with it"


def test_poller_watches_while_vectors_are_added(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    with IrqPoller() as poller:
        waiter = start(lambda: poller.wait(30.0))
        assert not eventually(waiter.done, 0.02)
        poller.add(vectors[2])
        pci.irqs.msix.trigger(2)
        assert waiter.result(10) == [(vectors[2], 1)]


# -- many


@pytest.fixture
def many() -> Iterator[list[IrqVector]]:
    """More than one look of the kernel's gives, and more than there is room for at first."""
    vectors = [IrqVector(number, f"vector {number}") for number in range(300)]
    yield vectors
    for vector in vectors:
        vector._close()


def ring(vector: IrqVector, count: int = 1) -> None:
    """Do what the kernel does when the device interrupts."""
    os.eventfd_write(vector.fileno(), count)


def by_vector(counts: object) -> dict[IrqVector, int]:
    """Make a table of what a poller gave; none comes twice."""
    found = dict(cast("list[tuple[IrqVector, int]]", counts))
    assert len(found) == len(cast("list[object]", counts))
    return found


def test_one_call_reads_all_of_many(many: list[IrqVector]) -> None:
    with IrqPoller(many) as poller:
        for vector in many:
            ring(vector, vector.number + 1)
        with mock.patch.object(module, "lib", wraps=lib) as calls:
            found = poller.wait(5.0)
        assert calls.vu_eventfds_read.call_count == 1
        assert {vector.number: count for vector, count in found} == {n: n + 1 for n in range(300)}
        assert poller.drain() == []
        assert all(vector.drain() == 0 for vector in many)


def test_no_interrupt_of_many_threads_is_lost(many: list[IrqVector]) -> None:
    sent, threads = 3000, 3

    def send(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(sent):
            ring(chance.choice(many))

    with IrqPoller(many, interval=0.0005) as poller:
        senders = [start(lambda seed=seed: send(seed)) for seed in range(threads)]  # type: ignore[misc]
        total, calls = 0, 0
        while total < threads * sent:
            total += sum(count for _, count in poller.wait(10.0))
            calls += 1
        assert total == threads * sent
        assert calls < total
        for sender in senders:
            sender.result(10)


def test_a_vector_that_is_added_while_somebody_waits_loses_nothing(many: list[IrqVector]) -> None:
    """Others interrupt all the time, and are closed: who waits reads whenever there is something to read."""
    over = threading.Event()
    with IrqPoller(many[:1]) as poller:

        def interrupt() -> None:
            while not over.is_set():
                ring(many[0])

        seen: Counter[IrqVector] = Counter()

        def watch() -> None:
            while not over.is_set():
                with suppress(DeadlineError):
                    seen.update(dict(poller.wait(0.1)))

        def close() -> None:
            for vector in goes:
                vector._close()

        sender, waiter = start(interrupt), start(watch)
        goes, comes = many[1:100], many[100:200]
        for vector in goes:
            poller.add(vector)
        closer = start(close)
        for vector in comes:
            ring(vector)
            poller.add(vector)
        closer.result(10)
        assert eventually(lambda: not any(select.select([each], [], [], 0)[0] for each in comes), 10)
        over.set()
        sender.result(10)
        waiter.result(20)
        seen.update(dict(poller.drain()))
    assert [seen[vector] for vector in comes] == [1] * 100


def test_vectors_that_go_while_somebody_waits(many: list[IrqVector]) -> None:
    """Closing waits until nobody reads the number any more: another file may have it at once."""
    with IrqPoller(many) as poller:
        seen: list[tuple[int, int]] = []
        stranger = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        def watch() -> None:
            while True:
                seen.extend((vector.number, count) for vector, count in poller.wait(30.0))

        waiter = start(watch)
        for vector in many:
            number = vector.fileno()
            vector._close()
            os.dup2(stranger, number, inheritable=False)
            os.eventfd_write(number, 7)
            assert os.eventfd_read(number) == 7, "nobody has read the stranger's file"
            os.close(number)
        with pytest.raises(ClosedError, match="were disabled"):
            waiter.result(10)
        os.close(stranger)
    assert seen == [], "the wake-up of a waiter is no interrupt"


@pytest.mark.parametrize("how", ["vector", "poller", "remove"])
def test_a_number_is_not_given_away_while_it_may_be_read(many: list[IrqVector], how: str) -> None:
    inside, leave = threading.Event(), threading.Event()

    def read(*_: object) -> int:
        inside.set()
        assert leave.wait(10)
        return 0

    poller = IrqPoller(many)
    let_go = {"vector": many[0]._close, "poller": poller.close, "remove": lambda: poller.remove(many[0])}
    with mock.patch.object(module, "lib", SimpleNamespace(vu_eventfds_read=read)):
        waiter = start(lambda: poller.wait(0.0))
        assert inside.wait(10)
        closer = start(let_go[how])
        assert not eventually(closer.done, 0.05)
        leave.set()
        assert closer.exception(10) is None
        assert isinstance(waiter.exception(10), DeadlineError)
    poller.close()


def test_removing_leaves_what_comes_later_to_the_vector(many: list[IrqVector]) -> None:
    with IrqPoller(many[:2]) as poller:
        waiter = start(lambda: poller.wait(30.0))
        assert not eventually(waiter.done, 0.02)
        poller.remove(many[0])
        ring(many[0])
        assert not eventually(waiter.done, 0.02)
        ring(many[1])
        assert waiter.result(10) == [(many[1], 1)]
        assert many[0].drain() == 1


def test_closing_the_poller_ends_the_wait(vectors: tuple[IrqVector, ...]) -> None:
    with nothing_left():
        poller = IrqPoller(vectors)
        waiter = start(lambda: poller.wait(30.0))
        assert not eventually(waiter.done, 0.02)
        with pytest.raises(BusyError, match="one thread or task at a time"):
            poller.wait(0)
        with pytest.raises(BusyError):
            poller.drain()
        poller.close()
        assert isinstance(waiter.exception(10), ClosedError)
        assert repr(poller) == "<IrqPoller closed>"


def test_a_child_does_not_read_what_is_its_parents(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    with IrqPoller(vectors) as poller:
        pci.irqs.msix.trigger(0)

        def child() -> str:
            with pytest.raises(ForkedError) as caught:
                poller.wait(0.1)
            poller.close()
            return str(caught.value)

        assert "was opened by the parent process" in in_child(child)
        assert poller.wait(1.0) == [(vectors[0], 1)]


def test_a_signal_handler_may_close_it(vectors: tuple[IrqVector, ...]) -> None:
    """In the very thread that waits, which can't leave before its handler has."""
    poller = IrqPoller(vectors)
    took: list[float] = []

    def handler(*_: object) -> None:
        begin = time.monotonic()
        poller.close()
        took.append(time.monotonic() - begin)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(ClosedError, match="this poller is closed"):
            poller.wait(50.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert took[0] < 5, "it waits for nobody"


def test_a_handler_that_raises_takes_nothing_away(many: list[IrqVector]) -> None:
    class AlarmError(Exception):
        pass

    def handler(*_: object) -> None:
        raise AlarmError

    with IrqPoller(many[:2], interval=3600.0) as poller:
        ring(many[0])
        assert poller.wait(5.0) == [(many[0], 1)]
        ring(many[1], 7)
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(AlarmError):
                poller.wait(50.0)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert poller.drain() == [(many[1], 7)]


def test_a_child_closes_what_a_thread_of_its_parent_waits_for(vectors: tuple[IrqVector, ...]) -> None:
    poller = IrqPoller(vectors)
    waiter = start(lambda: poller.wait(50.0))
    assert not eventually(waiter.done, 0.02)

    def child() -> str:
        poller.remove(vectors[0])
        poller.close()
        return repr(poller)

    begin = time.monotonic()
    assert in_child(child) == "'<IrqPoller closed>'"
    assert time.monotonic() - begin < 8, "nobody is waited for"
    poller.close()
    assert isinstance(waiter.exception(10), ClosedError)


# -- gathering


@pytest.mark.parametrize("interval", [-1, float("nan"), float("inf")])
def test_intervals_that_can_not_be(interval: float) -> None:
    with pytest.raises(ArgumentError, match="not a number of seconds"):
        IrqPoller(interval=interval)


def test_batches_that_can_not_be() -> None:
    with pytest.raises(BoundsError, match="at least 1"):
        IrqPoller(interval=1, batch=0)
    with pytest.raises(ArgumentError, match="give an interval"):
        IrqPoller(batch=3)


def test_the_first_is_told_at_once_and_others_when_the_interval_ends(many: list[IrqVector]) -> None:
    first, second = many[:2]
    with IrqPoller(many, interval=3600.0) as poller:
        ring(first)
        assert poller.wait(5.0) == [(first, 1)]
        ring(first)
        waiter = start(lambda: poller.wait(3600.0))
        assert not eventually(waiter.done, 0.05), "no two wake-ups within an interval"
        poller.close()
        assert waiter.result(10) == [(first, 1)], "what had come before is told"
    with IrqPoller(many, interval=0.01) as poller:
        for _ in range(3):
            ring(first)
            ring(second, 3)
            assert by_vector(poller.wait(5.0)) == {first: 1, second: 3}


def test_a_batch_ends_the_interval(many: list[IrqVector]) -> None:
    with IrqPoller(many, interval=3600.0, batch=5) as poller:
        ring(many[0])
        assert poller.wait(5.0) == [(many[0], 1)]
        waiter = start(lambda: poller.wait(3600.0))
        for vector in many[:4]:
            ring(vector)
        assert not eventually(waiter.done, 0.05), "four are no batch"
        ring(many[0])
        assert by_vector(waiter.result(10)) == {many[0]: 2, **dict.fromkeys(many[1:4], 1)}


def test_the_deadline_ends_the_interval(many: list[IrqVector]) -> None:
    with IrqPoller(many, interval=3600.0) as poller:
        ring(many[0])
        assert poller.wait(5.0) == [(many[0], 1)]
        ring(many[0])
        assert poller.wait(0.01) == [(many[0], 1)], "late is better than never"
        ring(many[1])
        assert poller.drain() == [(many[1], 1)]
        with pytest.raises(DeadlineError):
            poller.wait(0.01)


def test_what_was_gathered_is_told_once(many: list[IrqVector]) -> None:
    async def main() -> None:
        with IrqPoller(many, interval=3600.0, batch=5) as poller:
            ring(many[0])
            assert await poller.wait() == [(many[0], 1)]
            ring(many[0], 2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await poller.wait()
            assert poller.drain() == [(many[0], 2)]
            assert poller.drain() == []
            with pytest.raises(DeadlineError):
                poller.wait(0.01)

    asyncio.run(main())


# -- asyncio


@pytest.mark.parametrize("how", ["close", "disable"])
def test_the_end_is_noticed_within_an_interval(many: list[IrqVector], how: str) -> None:
    async def main() -> None:
        with IrqPoller(many[:1], interval=3600.0) as poller:
            ring(many[0])
            await poller.wait()
            asyncio.get_running_loop().call_later(0.02, poller.close if how == "close" else many[0]._close)
            with pytest.raises(ClosedError):
                async with asyncio.timeout(10):
                    await poller.wait()

    asyncio.run(main())


def test_await_many(many: list[IrqVector]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with IrqPoller(many) as poller:
            ring(many[3], 2)
            assert await poller.wait() == [(many[3], 2)]
            loop.call_later(0.01, ring, many[4])
            async with asyncio.timeout(10):
                assert await poller.wait() == [(many[4], 1)]
                seen = 0
                ring(many[5], 3)
                async for counts in poller:
                    seen += sum(count for _, count in counts)
                    if seen == 6:
                        break
                    ring(many[6])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await poller.wait()
            loop.call_later(0.01, poller.close)
            with pytest.raises(ClosedError, match="this poller is closed"):
                await poller.wait()

    with nothing_left():
        asyncio.run(main())


def test_await_gathered(many: list[IrqVector]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with IrqPoller(many, interval=3600.0) as poller:
            ring(many[0])
            assert await poller.wait() == [(many[0], 1)]
            ring(many[0])
            loop.call_later(0.01, ring, many[1])
            waiter = asyncio.create_task(poller._next())
            while select.select([many[1]], [], [], 0)[0] == []:
                await asyncio.sleep(0.001)
            assert not waiter.done(), "the interval is not over"
            poller._not_before = 0.0
            poller._ring()
            async with asyncio.timeout(10):
                assert by_vector(await waiter) == {many[0]: 1, many[1]: 1}

    asyncio.run(main())


def test_await_a_batch(many: list[IrqVector]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with IrqPoller(many, interval=3600.0, batch=3) as poller:
            ring(many[0])
            assert await poller.wait() == [(many[0], 1)]
            ring(many[0], 2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await poller.wait()
            loop.call_later(0.01, ring, many[1])
            async with asyncio.timeout(10):
                assert by_vector(await poller.wait()) == {many[0]: 2, many[1]: 1}, "nothing was lost with who gave up"

    asyncio.run(main())


def test_vectors_that_go_while_a_task_waits(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    async def main() -> None:
        with IrqPoller(vectors) as poller:
            asyncio.get_running_loop().call_later(0.01, pci.irqs.msix.disable)
            with pytest.raises(ClosedError, match="were disabled"):
                async with asyncio.timeout(10):
                    await poller.wait()

    asyncio.run(main())
