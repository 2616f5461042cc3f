"""Benchmarks of rings in memory, natively: what a command costs the processor, with a device that answers at once.

The device is a stub in C whose few nanoseconds for each command are in all figures, the peer's too.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy

from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user import Iova
from vfio_user.drivers.nvme.memory import QueueMemory
from vfio_user.drivers.nvme.queue import QueuePair
from vfio_user.iommu import DmaSlice
from vfio_user.kernel.mman import address_of
from vfio_user.memory import Mmio, Window

__all__ = ["benchmarks"]

_ENTRIES = 256
_TURNS = 4000
_BELLS = 0x1008


class _Rings:
    """A queue pair over plain memory, with its stub of a device."""

    def __init__(self, window: Window) -> None:
        memory = mmap.mmap(-1, _ENTRIES * 96)
        submissions = memoryview(memory)[: _ENTRIES * 64]
        completions = memoryview(memory)[_ENTRIES * 64 : _ENTRIES * 80]
        lists = memoryview(memory)[_ENTRIES * 80 :]
        bar = Mmio(window, 0, 1 << 16, [(0, 1 << 16)])
        self.stub = build.extension("stub").Stub(
            address_of(submissions), address_of(completions), bar.address + _BELLS, _ENTRIES
        )
        parts = [DmaSlice(view, Iova(0)) for view in (submissions, completions, lists)]
        options: dict[str, Any] = {"finder": None, "diagnose": lambda: None}
        self.queue = QueuePair(
            1,
            _ENTRIES,
            QueueMemory(parts[0], parts[1], parts[2], 8),
            doorbells=bar,
            bell_offsets=(_BELLS, _BELLS + 4),
            page_size=4096,
            max_transfer=4096,
            vector=None,
            timeout=1.0,
            **options,
        )
        self.queue._clear()
        self.queue._start()


@contextmanager
def _rings() -> Iterator[_Rings]:
    fd = os.memfd_create("bar", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 16)
    window = Window(1 << 16, name="benchmark")
    window.map(0, 1 << 16, fd, 0)
    try:
        yield _Rings(window)
    finally:
        window.close()
        os.close(fd)


def _arrays(rings: _Rings, depth: int, callback: bool) -> Callable[[], float]:
    queue, serve = rings.queue, rings.stub.serve
    rows = memoryview(numpy.arange(depth, dtype="<u8"))  # type: ignore[arg-type]  # it has a buffer
    table = memoryview(numpy.full(depth * 64, 2, "u1"))  # type: ignore[arg-type]
    seen = 0

    def done(number: int, status: int) -> None:
        nonlocal seen
        seen += 1

    def run() -> float:
        submit, reap, each = queue.submit_rows, queue.reap, queue.reap_each
        start = time.thread_time_ns()
        if callback:
            for _ in range(_TURNS):
                submit(table, rows)
                serve()
                each(done)
        else:
            for _ in range(_TURNS):
                submit(table, rows)
                serve()
                reap(rows)
        cost = (time.thread_time_ns() - start) / (_TURNS * depth)
        assert queue.num_in_flight == 0
        return cost

    return run


@contextmanager
def _pair(depth: int, callback: bool) -> Iterator[Pair]:
    # Rings of its own for the peer: each keeps its place by itself.
    with _rings() as mine, _rings() as theirs:
        yield Pair(_arrays(mine, depth, callback), lambda: float(theirs.stub.plain(_TURNS, depth)))


def _ours(ours: float, peer: float) -> float:
    return ours


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module; what is compared with the goal are nanoseconds."""
    for depth, callback, goal in ((32, False, 20.0), (32, True, 400.0)):
        yield Benchmark(
            name=f"rings-{depth}{'-callback' * callback}",
            what=f"submit and reap, {depth} at a time{', a callback for each' * callback}",
            unit="ns",
            peer="the plain loop in C",
            goal=goal,
            setup=partial(_pair, depth, callback),
            ratio=_ours,
        )
