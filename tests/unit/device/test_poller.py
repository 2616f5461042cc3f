"""Many vectors at once: nothing is lost, one call reads all, busy ones are gathered, and closing disturbs nobody."""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from unittest import mock

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.device.vectors import ring
from tests.unit.forking import in_child
from tests.unit.threads import eventually, start
from vfio_user import IrqPoller, IrqVector, PciDevice
from vfio_user._uapi import lib
from vfio_user.device import poller as module
from vfio_user.errors import BusyError, ClosedError, DeadlineError, ForkedError


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


def test_a_child_closes_what_a_thread_of_its_parent_waits_for(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    """It waits for nobody, and the parent, whose epoll it shares, goes on."""
    with IrqPoller(vectors) as poller:
        waiter = start(lambda: poller.wait(50.0))
        assert not eventually(waiter.done, 0.02)

        def child() -> str:
            poller.remove(vectors[0])
            poller.close()
            return repr(poller)

        assert in_child(child, timeout=5) == "'<IrqPoller closed>'"
        pci.irqs.msix.trigger(0)
        assert waiter.result(10) == [(vectors[0], 1)]
        pci.irqs.msix.trigger(1)
        assert poller.wait(10) == [(vectors[1], 1)]
