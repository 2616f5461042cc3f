"""Interrupt vectors: no count is lost, every wait ends, and closing wakes whoever waits."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.fake_device import FakeDevice
from tests.unit.forking import in_child
from tests.unit.threads import start
from vfio_user import IrqPoller, IrqVector, PciDevice
from vfio_user.errors import ArgumentError, ClosedError, DeadlineError, ForkedError, LockOrderError
from vfio_user.memory import MemoryLock, Window


def test_counts_add_up(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    for _ in range(5):
        pci.irqs.msix.trigger(2)
    assert vectors[2].wait(1.0) == 5
    assert vectors[2].drain() == 0
    pci.irqs.msix.trigger(2)
    assert vectors[2].drain() == 1
    assert [vector.drain() for vector in vectors] == [0] * 4


def test_no_wait_inside_of_a_read_section(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    """Also when there would be nothing to wait for: a mistake is to show when it is made."""

    async def await_it() -> None:
        await vectors[0]

    window = Window(4096, name="some device")
    pci.irqs.msix.trigger(0)
    with IrqPoller(vectors) as poller:
        with MemoryLock(window).reading():
            for wait in (lambda: vectors[0].wait(1), lambda: poller.wait(1), lambda: asyncio.run(await_it())):
                with pytest.raises(LockOrderError, match=r"leave access\(\) before waiting for an interrupt"):
                    wait()
            assert vectors[0].drain() == 1, "a look is no wait"
        pci.irqs.msix.trigger(0)
        assert vectors[0].wait(1.0) == 1
    window.close()


def test_wait_ends_with_the_interrupt(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    waiter = start(lambda: vectors[1].wait(30.0))
    time.sleep(0.01)
    pci.irqs.msix.trigger(1)
    assert waiter.result(10) == 1


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_deadline(vectors: tuple[IrqVector, ...], timeout: float) -> None:
    begin = time.monotonic()
    with pytest.raises(DeadlineError, match=rf"no interrupt on 0000:01:00\.0 MSI-X 3 within {timeout:g} s"):
        vectors[3].wait(timeout)
    assert time.monotonic() - begin >= timeout


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan")])
def test_timeout_is_a_number_of_seconds(vectors: tuple[IrqVector, ...], timeout: float) -> None:
    with pytest.raises(ArgumentError, match="not a number of seconds"):
        vectors[0].wait(timeout)
    with IrqPoller(vectors) as poller, pytest.raises(ArgumentError, match="not a number of seconds"):
        poller.wait(timeout)


def test_timeout_beyond_what_the_kernel_counts(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    pci.irqs.msix.trigger(0)
    assert vectors[0].wait(1e12) == 1
    pci.irqs.msix.trigger(0)
    with IrqPoller(vectors) as poller:
        assert poller.wait(1e12) == [(vectors[0], 1)]


def test_each_interrupt_goes_to_one_of_many_waiters(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    total, seen, lock = 300, [0], threading.Lock()

    def count() -> None:
        while True:
            try:
                came = vectors[0].wait(0.5)
            except DeadlineError:
                return
            with lock:
                seen[0] += came

    waiters = [start(count) for _ in range(4)]
    for _ in range(total):
        pci.irqs.msix.trigger(0)
    for waiter in waiters:
        waiter.result(10)
    assert seen == [total]


def test_file_for_other_event_loops(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    assert select.select([vectors[0]], [], [], 0)[0] == []
    pci.irqs.msix.trigger(0)
    assert select.select([vectors[0]], [], [], 1)[0] == [vectors[0]]
    assert not os.get_inheritable(vectors[0].fileno())


# -- closing


def test_closing_wakes_every_waiter(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    waiters = [start(lambda: vectors[0].wait(30.0)) for _ in range(3)]
    time.sleep(0.05)
    begin = time.monotonic()
    pci.irqs.msix.disable()
    for waiter in waiters:
        assert isinstance(waiter.exception(10), ClosedError)
    assert time.monotonic() - begin < 5


def test_closing_a_vector_with_interrupts_that_nobody_took(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    pci.irqs.msix.trigger(0)
    pci.irqs.msix.disable()
    for refused in (vectors[0].drain, lambda: vectors[0].wait(0), vectors[0].fileno):
        with pytest.raises(ClosedError, match="MSI-X 0"):
            refused()
    assert repr(vectors[0]) == "<IrqVector 0000:01:00.0 MSI-X 0 closed>"


def test_closing_beside_waiters_that_come_and_go(device: FakeDevice, pci: PciDevice) -> None:
    def use(vector: IrqVector) -> None:
        while True:
            try:
                vector.wait(0.0005)
            except DeadlineError:
                vector.drain()

    for _ in range(20):
        (vector,) = pci.irqs.msix.enable(1)
        users = [start(lambda vector=vector: use(vector)) for _ in range(3)]  # type: ignore[misc]
        time.sleep(0.002)
        pci.irqs.msix.disable()
        assert all(isinstance(user.exception(10), ClosedError) for user in users)


def test_nothing_is_left(pci: PciDevice) -> None:
    with nothing_left():
        with pci.irqs.msix.enable(8) as vectors, IrqPoller(vectors):
            pci.irqs.msix.trigger(3)
        del vectors


def test_child_is_refused(vectors: tuple[IrqVector, ...]) -> None:
    def child() -> str:
        with pytest.raises(ForkedError) as caught:
            vectors[0].wait(1.0)
        return str(caught.value)

    assert "was opened by the parent process" in in_child(child)
