"""Benchmarks of waking up by an interrupt, natively: from the write to an eventfd until Python runs.

A thread in C stands for the device. Whoever waits sleeps: what is measured is mostly the scheduler's, for both sides.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user.device.poller import IrqPoller
from vfio_user.device.vector import IrqVector

__all__ = ["benchmarks"]

_COUNT = 150
_TIMEOUT = 20.0
_MANY = 64


class _Sender(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_int),
        ("count", ctypes.c_long),
        ("stamps", ctypes.POINTER(ctypes.c_int64)),
        ("taken", ctypes.c_int64),
        ("thread", ctypes.c_ulong),
    )


class _Interrupts:
    """A vector, and who signals it."""

    def __init__(self, vector: IrqVector) -> None:
        self.vector = vector
        self._stamps = (ctypes.c_int64 * _COUNT)()
        self._waits = (ctypes.c_int64 * _COUNT)()
        self._sender = _Sender(vector.fileno(), _COUNT, self._stamps, 0, 0)
        self._library = build.library("irq")
        self._in_c = build.cost("irq", "epoll_waits")

    def plain(self) -> float:
        """Let C wait; median in µs."""
        self._in_c(ctypes.byref(self._sender), self._waits)
        return float(statistics.median(self._waits)) / 1e3

    def taken(self, number: int) -> None:
        """Note that an interrupt has arrived, now; called at once."""
        self._waits[number] = time.monotonic_ns() - self._stamps[number]
        self._sender.taken = number + 1

    def measure(self, wait: Callable[[_Interrupts], None]) -> float:
        """Let Python wait; median in µs."""
        if self._library.sender_start(ctypes.byref(self._sender)):
            raise RuntimeError("no thread to be had")
        try:
            wait(self)
        finally:
            self._sender.taken = _COUNT
            self._library.sender_join(ctypes.byref(self._sender))
        self.vector.drain()
        return float(statistics.median(self._waits)) / 1e3


def _block(irq: _Interrupts) -> None:
    wait = irq.vector.wait
    for number in range(_COUNT):
        wait(_TIMEOUT)
        irq.taken(number)


def _poller(irq: _Interrupts) -> None:
    with IrqPoller([irq.vector]) as poller:
        for number in range(_COUNT):
            poller.wait(_TIMEOUT)
            irq.taken(number)


def _callback(irq: _Interrupts) -> None:
    async def main() -> None:
        loop, over, number = asyncio.get_running_loop(), asyncio.Event(), 0

        def arrived() -> None:
            nonlocal number
            if irq.vector.drain():
                irq.taken(number)
                number += 1
                if number == _COUNT:
                    over.set()

        loop.add_reader(irq.vector.fileno(), arrived)
        try:
            async with asyncio.timeout(_TIMEOUT):
                await over.wait()
        finally:
            loop.remove_reader(irq.vector.fileno())

    asyncio.run(main())


def _coroutine(irq: _Interrupts) -> None:
    async def main() -> None:
        async with asyncio.timeout(_TIMEOUT):
            for number in range(_COUNT):
                await irq.vector.wait()
                irq.taken(number)

    asyncio.run(main())


@contextmanager
def _pair(wait: Callable[[_Interrupts], None]) -> Iterator[Pair]:
    vector = IrqVector(0, "benchmark")
    try:
        irq = _Interrupts(vector)
        yield Pair(lambda: irq.measure(wait), irq.plain)
    finally:
        vector._close()


def _median(vectors: list[IrqVector], take: Callable[[], float]) -> float:
    costs = []
    for _ in range(_COUNT):
        for vector in vectors:
            os.eventfd_write(vector.fileno(), 1)
        costs.append(take())
    return statistics.median(costs) / 1e3


@contextmanager
def _many() -> Iterator[Pair]:
    vectors = [IrqVector(number, "benchmark") for number in range(_MANY)]
    in_c = build.cost("irq", "reads_many")
    with IrqPoller(vectors) as poller, select.epoll() as epoll:
        for vector in vectors:
            epoll.register(vector, select.EPOLLIN)

        def take() -> float:
            begin = time.perf_counter_ns()
            found = poller.wait(_TIMEOUT)
            cost = time.perf_counter_ns() - begin
            assert len(found) == _MANY
            return cost

        plain = partial(in_c, ctypes.c_int(epoll.fileno()), ctypes.c_int(_MANY))
        yield Pair(lambda: _median(vectors, take), lambda: _median(vectors, plain))
    for vector in vectors:
        vector._close()


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    for name, words, wait, goal in (
        ("wait", "a blocking wait()", _block, 1.3),
        ("poller", "a poller of many vectors", _poller, 1.5),
        ("callback", "a callback of asyncio", _callback, 2.0),
        ("coroutine", "a coroutine", _coroutine, 2.5),
    ):
        yield Benchmark(
            name=f"irq-{name}",
            what=f"interrupt to {words}",
            unit="µs",
            peer="epoll_wait() and read() in C",
            goal=goal,
            setup=partial(_pair, wait),
        )
    yield Benchmark(
        name=f"irq-poller-{_MANY}",
        what=f"reading {_MANY} vectors that have interrupts, by one call",
        unit="µs",
        peer="epoll_wait() and a read() of each in C",
        goal=1.5,
        setup=_many,
    )
