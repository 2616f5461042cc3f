"""Benchmarks of NVMe on the emulated controller, beside a plain loop in C and the kernel's driver.

Rates of an emulator say nothing of hardware, and even ratios are distorted: Python is slowed down by emulation far
more than the device is, which costs our side; a doorbell is a trip into the emulator, and interrupts and IOMMU
invalidations are dear, which costs the kernel's side.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy

import vfio_user
from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user import testing
from vfio_user.drivers.nvme import NvmeController, Pieces, QueuePair
from vfio_user.drivers.nvme.regs import doorbell_offset
from vfio_user.kernel.mman import address_of

__all__ = ["benchmarks"]

_SIZE = 4096
_PIECES = 1024
_TIMEOUT = 30.0
_ENTRIES = 128
_COUNTS = {1: 400, 32: 4000}
#: Of reads in order: bytes, pieces of memory, commands by depth.
_LARGE, _LARGE_PIECES, _LARGE_COUNTS = 128 << 10, 64, {1: 200, 32: 400}
#: What fio calls it, in words.
_MODES = {"randread": "4 KiB random read", "randwrite": "4 KiB random write", "read": "128 KiB read in order"}
_LEAST = 4  # of its depth, a quarter is worth a call


# -- our side


@dataclass(frozen=True, slots=True)
class _Work:
    """Commands that stand ready: a queue, and pieces of memory that are used one after the other."""

    queue: QueuePair
    pieces: Pieces
    last: int
    """The last piece of the namespace, counted in pieces."""
    sequence: memoryview
    """Row numbers, twice over, so that no slice wraps."""

    @classmethod
    def on(cls, ctrl: NvmeController, stack: ExitStack, size: int, count: int) -> _Work:
        namespace = ctrl.namespaces[0]
        buffer = stack.enter_context(ctrl.pci.dma_alloc(size * count))
        pieces = stack.enter_context(namespace.pieces(buffer, size // namespace.block_size))
        buffer[:] = bytes(buffer.size)  # the kernel's driver reads into memory that is there, too
        rows = numpy.arange(2 * count, dtype="<u8") % count
        places = namespace.size // size
        return cls(ctrl.io_queues[0], pieces, places - 1, memoryview(rows))  # type: ignore[arg-type]  # it has a buffer

    def prepare(self, *, write: bool = False, sequential: bool = False, lap: int = 0) -> None:
        """Choose the blocks of the next commands; those in order go on where the lap before has ended."""
        rows = len(self.pieces)
        in_order = numpy.arange(lap * rows, (lap + 1) * rows)
        places = in_order if sequential else numpy.random.default_rng().integers(0, self.last + 1, rows)
        choose = self.pieces.write if write else self.pieces.read
        choose(slice(None), places % (self.last + 1) * self.pieces.num_blocks)

    def run(self, depth: int, count: int, **kind: bool) -> float:
        """Do ``count`` commands, ``depth`` in flight; give the rate in 1/s."""
        queue, table, sequence = self.queue, self.pieces.table, self.sequence
        submit, reap, rows = queue.submit_rows, queue.reap, numpy.zeros(depth, "<u8")
        size, failed, least = len(self.pieces), queue.num_failed, max(1, depth // _LEAST)
        found, ready = memoryview(rows), memoryview(table).cast("B")  # type: ignore[arg-type]  # they have buffers
        start = time.perf_counter()
        self.prepare(**kind)
        submit(ready, sequence[:depth])
        sent, done = depth, 0
        while sent < count:
            finished = reap(found, None, _TIMEOUT, least=least)
            done += finished
            at = sent % size
            submit(ready, sequence[at : at + finished])
            sent += finished
            if kind.get("sequential") and at + finished >= size:
                self.prepare(**kind, lap=sent // size)
        while done < sent:
            done += reap(found, None, _TIMEOUT)
        rate = done / (time.perf_counter() - start)
        assert queue.num_failed == failed, "commands failed"
        return rate

    def run_callbacks(self, depth: int, count: int) -> float:
        """The same with a function that is called for each command."""
        queue, sequence = self.queue, self.sequence
        submit, each, size = queue.submit_rows, queue.reap_each, len(self.pieces)
        least = max(1, depth // _LEAST)
        ready = memoryview(self.pieces.table).cast("B")  # type: ignore[arg-type]
        wrong: list[tuple[int, int]] = []

        def done_with(number: int, status: int) -> None:
            if status:
                wrong.append((number, status))

        start = time.perf_counter()
        self.prepare()
        submit(ready, sequence[:depth])
        sent, done = depth, 0
        while sent < count:
            finished = each(done_with, _TIMEOUT, least=least)
            done += finished
            at = sent % size
            submit(ready, sequence[at : at + finished])
            sent += finished
        while done < sent:
            done += each(done_with, _TIMEOUT)
        rate = done / (time.perf_counter() - start)
        assert not wrong
        return rate


# -- the loop in C


class _Queue(ctypes.Structure):
    _fields_ = (
        ("submissions", ctypes.c_void_p),
        ("completions", ctypes.c_void_p),
        ("tail_bell", ctypes.c_void_p),
        ("head_bell", ctypes.c_void_p),
        ("entries", ctypes.c_uint32),
        ("tail", ctypes.c_uint32),
        ("head", ctypes.c_uint32),
        ("phase", ctypes.c_uint32),
        ("random", ctypes.c_uint64),
    )


def _plain(ctrl: NvmeController, stack: ExitStack, depth: int, count: int) -> Callable[[], float]:
    """Give the same slice by `native/nvme.c`, on the second queue of the controller."""
    queue, namespace = ctrl.io_queues[1], ctrl.namespaces[0]
    registers = ctrl.pci.bar(0).mmio
    assert registers is not None
    stride = ctrl.registers.capabilities.doorbell_stride
    bells = [registers.address + doorbell_offset(queue.qid, completion=done, stride=stride) for done in (False, True)]
    memory = queue._memory
    native = _Queue(
        address_of(memory.submissions.view),
        address_of(memory.completions.view),
        *bells,
        queue.entries,
        0,
        0,
        1,
        88172645463325252,
    )
    buffer = stack.enter_context(ctrl.pci.dma_alloc(depth * _SIZE))
    buffer[:] = bytes(buffer.size)
    reads = build.cost("nvme", "reads_ns")
    arguments = (
        ctypes.c_uint32(namespace.nsid),
        ctypes.c_uint64(buffer.iova),
        ctypes.c_uint64(namespace.size // _SIZE),
        ctypes.c_uint32(_SIZE // namespace.block_size),
        ctypes.c_uint32(depth),
        ctypes.c_long(count),
    )
    return lambda: 1e9 / reads(ctypes.byref(native), *arguments)


@contextmanager
def _controller(queues: int = 1) -> Iterator[NvmeController]:
    with (
        vfio_user.open(testing.device("nvme").address) as pci,
        NvmeController(pci, io_queues=queues, io_entries=_ENTRIES, interrupts=False) as ctrl,
    ):
        yield ctrl


@contextmanager
def _beside_c(depth: int, callbacks: bool) -> Iterator[Pair]:
    count = _COUNTS[depth]
    with _controller(2) as ctrl, ExitStack() as stack:
        work = _Work.on(ctrl, stack, _SIZE, _PIECES)
        run = work.run_callbacks if callbacks else work.run
        yield Pair(lambda: run(depth, count), _plain(ctrl, stack, depth, count))


# -- the kernel's driver


class _Function:
    """The controller's PCI function, whose driver changes."""

    def __init__(self) -> None:
        self.path = Path("/sys/bus/pci/devices") / testing.device("nvme").address

    def bind(self, driver: str) -> None:
        """Give it to another driver."""
        bound = self.path / "driver"
        if bound.exists() and bound.resolve().name == driver:
            return
        (self.path / "driver_override").write_text(driver)
        if bound.exists():
            (bound / "unbind").write_text(self.path.name)
        Path("/sys/bus/pci/drivers_probe").write_text(self.path.name)
        if not bound.exists() or bound.resolve().name != driver:
            raise RuntimeError(f"{self.path.name} does not bind to {driver}: has this kernel that driver?")

    def disk(self) -> str:
        """Give the block device, once it is there."""
        deadline = time.monotonic() + _TIMEOUT
        while time.monotonic() < deadline:
            for found in self.path.glob("nvme/nvme*/nvme*n1"):
                if Path("/dev", found.name).exists():
                    return f"/dev/{found.name}"
            time.sleep(0.02)
        raise RuntimeError(f"the kernel's driver shows no disk of {self.path.name}")


def _fio(engine: str, mode: str, size: int, depth: int) -> float:
    """Run fio for a moment on the kernel's driver; give the rate in 1/s."""
    function = _Function()
    function.bind("nvme")
    try:
        options = {
            "name": "bench",
            "filename": function.disk(),
            "ioengine": engine,
            "rw": mode,
            "bs": str(size),
            "iodepth": str(depth),
            "runtime": "1.5",
            "ramp_time": "0.3",
            "output-format": "json",
        }
        line = [
            "fio",
            "--direct=1",
            "--time_based",
            "--thread",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
        job: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        return float(job["write" if "write" in mode else "read"]["iops"])
    finally:
        function.bind("vfio-pci")


@contextmanager
def _beside_fio(engine: str, mode: str, depth: int) -> Iterator[Pair]:
    sequential, size = mode == "read", _LARGE if mode == "read" else _SIZE
    count = (_LARGE_COUNTS if sequential else _COUNTS)[depth]

    def ours() -> float:
        with _controller() as ctrl, ExitStack() as stack:
            work = _Work.on(ctrl, stack, size, _LARGE_PIECES if sequential else _PIECES)
            return work.run(depth, count, write=mode == "randwrite", sequential=sequential)

    yield Pair(ours, partial(_fio, engine, mode, size, depth))


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    for depth, callbacks, goal in ((32, False, 0.95), (32, True, 0.5), (1, False, 0.9)):
        yield Benchmark(
            name=f"nvme-qd{depth}{'-callback' * callbacks}",
            what=f"4 KiB random read, polled, {depth} in flight{', a callback for each' * callbacks}",
            unit="1/s",
            peer="a plain polled loop in C",
            goal=goal,
            higher=True,
            setup=partial(_beside_c, depth, callbacks),
            rounds=11,
        )
    for mode, depth, engine in itertools.product(_MODES, (32, 1), ("io_uring", "libaio")):
        yield Benchmark(
            name=f"nvme-{mode}-qd{depth}-{engine}",
            what=f"{_MODES[mode]}, {depth} in flight",
            unit="1/s",
            peer=f"the kernel's driver, fio with {engine}",
            goal=1.5 if (mode, depth) == ("randread", 32) else 1.0,
            higher=True,
            setup=partial(_beside_fio, engine, mode, depth),
            rounds=3,
        )
