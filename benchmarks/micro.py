"""Benchmarks of the C core, natively: register accesses, the memory lock, zapping. ``python -m benchmarks.micro``.

A memfd stands for the BAR: an access takes as long as ordinary memory does, which shows what the framework adds. On a
real device each access is hundreds of nanoseconds more, for both sides of a ratio.

Times are the processor's, not the wall clock's, but for the writer's waits: what others do on the machine counts less.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from benchmarks import build, measure, report
from benchmarks.model import Benchmark, Pair
from vfio_user.drivers import Register, RegisterMap
from vfio_user.memory import Mmio, Program, Window

__all__ = ["benchmarks", "main"]

_MIB = 1 << 20
_REGISTER = 64
_VALUE = 0xA5A5A5A5  # two digits of a Python integer, and in no cache of small ones
_UNROLLED = 20
_CALLS = 2000
_ACCESSES = 4096
_ROUNDS = 21


@dataclasses.dataclass(frozen=True, slots=True)
class _Device:
    """A window with regions of a memfd."""

    fd: int
    window: Window
    regions: tuple[Mmio, ...]


@contextmanager
def _device(sizes: Sequence[int]) -> Iterator[_Device]:
    stride = [-(-size // (2 * _MIB)) * 2 * _MIB for size in sizes]
    fd = os.memfd_create("bar", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, sum(stride))
        window = Window(sum(stride), name="benchmark")
        try:
            places = [sum(stride[:index]) for index in range(len(sizes))]
            for place, size in zip(places, sizes, strict=True):
                window.map(place, size, fd, place)
            regions = (Mmio(window, place, size, [(0, size)]) for place, size in zip(places, sizes, strict=True))
            yield _Device(fd, window, tuple(regions))
        finally:
            window.close()
    finally:
        os.close(fd)


# -- single accesses


def _loop(setup: str, expression: str) -> Callable[[Any], float]:
    """Make a function that gives the nanoseconds of an expression on ``x``, unrolled so that the loop counts little."""
    source = "\n".join(
        [
            "def measure(x, clock):",
            f"    {setup}",
            "    start = clock()",
            f"    for _ in range({_CALLS}):",
            *([f"        {expression}"] * _UNROLLED),
            f"    return (clock() - start) / {_CALLS * _UNROLLED}",
        ]
    )
    names: dict[str, Any] = {}
    exec(source, names)
    return lambda x: float(names["measure"](x, time.thread_time_ns))


def _bare(address: int) -> Any:
    """Give an accessor that guards nothing: `native/bare.c`."""
    return build.extension("bare").Bare(address)


@contextmanager
def _read_and_memoryview() -> Iterator[Pair]:
    with _device([_MIB]) as device:
        mmio = device.regions[0]
        mmio.write32(_REGISTER, _VALUE)
        ours = _loop("read = x.read32", f"read({_REGISTER})")
        peer = _loop("pass", f"x[{_REGISTER // 4}]")
        with memoryview(mmio) as raw, raw.cast("I") as view:
            yield Pair(lambda: ours(mmio), lambda: peer(view))


@contextmanager
def _access_and_bare(verb: str) -> Iterator[Pair]:
    with _device([_MIB]) as device:
        mmio = device.regions[0]
        mmio.write32(_REGISTER, _VALUE)
        bare = _bare(mmio.address)
        arguments = f"{_REGISTER}, {_VALUE}" if verb.startswith("write") else f"{_REGISTER}"
        loop = _loop(f"call = x.{verb}", f"call({arguments})")
        yield Pair(lambda: loop(mmio), lambda: loop(bare))


class _Registers(RegisterMap):
    """One register."""

    status = Register(_REGISTER, 32, doc="Of no meaning.")


@contextmanager
def _declared_and_read() -> Iterator[Pair]:
    with _device([_MIB]) as device:
        mmio = device.regions[0]
        ours, peer = _loop("register = x.status", "register.read()"), _loop("pass", f"x.read32({_REGISTER})")
        registers, bar = _Registers(mmio), SimpleNamespace(read32=mmio.read32)  # as a Region has it
        yield Pair(lambda: ours(registers), lambda: peer(bar))


def _share(ours: float, peer: float) -> float:
    return (ours - peer) / ours


# -- many accesses in one call


def _library(name: str, doubles: Sequence[str]) -> ctypes.CDLL:
    library = build.library(name)
    for function in doubles:
        getattr(library, function).restype = ctypes.c_double
    return library


def _mean_ns(call: Callable[[], object], times: int) -> float:
    start = time.thread_time_ns()
    for _ in range(times):
        call()
    return (time.thread_time_ns() - start) / times


@contextmanager
def _block() -> Iterator[Pair]:
    library = _library("micro", ["read_loop_ns"])
    with _device([_MIB]) as device:
        mmio = device.regions[0]
        buffer = bytearray(4 * _ACCESSES)
        values = (ctypes.c_uint32 * _ACCESSES)()
        address = ctypes.c_void_p(mmio.address)
        yield Pair(
            lambda: _mean_ns(lambda: mmio.readinto(0, buffer), 500),
            lambda: float(library.read_loop_ns(address, values, ctypes.c_long(_ACCESSES), ctypes.c_long(500))),
        )


@contextmanager
def _program() -> Iterator[Pair]:
    library = _library("micro", ["program_loop_ns"])
    half = _ACCESSES // 2
    steps: list[tuple[str, int] | tuple[str, int, int]] = [("write32", 4 * index, index) for index in range(half)]
    steps += [("read32", 4 * index) for index in range(half, _ACCESSES)]
    program = Program(steps)
    with _device([_MIB]) as device:
        mmio = device.regions[0]
        results = bytearray(8 * program.num_results)
        values = (ctypes.c_uint64 * _ACCESSES)()
        address = ctypes.c_void_p(mmio.address)
        yield Pair(
            lambda: _mean_ns(lambda: mmio.run_into(program, results), 500),
            lambda: float(library.program_loop_ns(address, values, ctypes.c_long(_ACCESSES), ctypes.c_long(500))),
        )


# -- the memory lock


@contextmanager
def _sections(threads: int) -> Iterator[Pair]:
    library = _library("rwlock", ["slots_read_ns", "rwlock_read_ns"])
    count = ctypes.c_long(500_000)
    yield Pair(
        lambda: float(library.slots_read_ns(count, threads)),
        lambda: float(library.rwlock_read_ns(count, threads)),
    )


@contextmanager
def _drain(readers: int) -> Iterator[Pair]:
    library = _library("rwlock", ["slots_drain_us", "rwlock_drain_us"])
    longest = ctypes.c_double(), ctypes.c_double()
    cycles = 100 if readers == 1 else 40
    yield Pair(
        lambda: float(library.slots_drain_us(readers, cycles, ctypes.byref(longest[0]))),
        lambda: float(library.rwlock_drain_us(readers, cycles, ctypes.byref(longest[1]))),
        lambda: f"longest {longest[0].value:.0f} µs, peer's {longest[1].value:.0f} µs",
    )


# -- zap


@contextmanager
def _zap(bars: int) -> Iterator[Pair]:
    library = _library("micro", ["replace_ns"])
    with _device([48 * _MIB // bars] * bars) as device:
        window = device.window
        address, size = ctypes.c_void_p(window.address), ctypes.c_size_t(window.size)

        def populate() -> None:
            window.revive(device.fd)
            library.touch(address, size)

        def ours() -> float:
            populate()
            start = time.thread_time_ns()
            window.zap()
            return (time.thread_time_ns() - start) / 1e3

        def peer() -> float:
            populate()
            return float(library.replace_ns(address, size)) / 1e3

        yield Pair(ours, peer)


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    yield Benchmark(
        name="read32-guarded",
        what="guarded read32",
        unit="ns",
        peer="unguarded memoryview.cast('I')[i]",
        goal=0.8,
        setup=_read_and_memoryview,
        rounds=_ROUNDS,
    )
    for verb in ("read32", "write32"):
        yield Benchmark(
            name=f"{verb}-guard-share",
            what=f"share of the guard in {verb}",
            unit="ns",
            peer="the same call without a guard",
            goal=0.05,
            setup=partial(_access_and_bare, verb),
            rounds=_ROUNDS,
            ratio=_share,
        )
    yield Benchmark(
        name="register-declared",
        what="read of a declared register",
        unit="ns",
        peer="bar.read32(offset)",
        goal=1.1,
        setup=_declared_and_read,
        rounds=_ROUNDS,
    )
    for name, words, setup in (("block-read", "block read", _block), ("program", "register program", _program)):
        yield Benchmark(
            name=f"{name}-{_ACCESSES}",
            what=f"{words} of {_ACCESSES} accesses",
            unit="ns",
            peer="the loop in C",
            goal=1.1,
            setup=setup,
        )
    for threads in (1, 2):
        yield Benchmark(
            name=f"lock-read-{threads}",
            what=f"read section, {threads} thread{'s' * (threads > 1)}",
            unit="ns",
            peer="pthread_rwlock",
            goal=0.7,
            setup=partial(_sections, threads),
        )
    for readers, goal in ((1, 0.5), (8, 1.2), (64, 1.2)):
        yield Benchmark(
            name=f"lock-drain-{readers}",
            what=f"writer's wait for {readers} reader{'s' * (readers > 1)}",
            unit="µs",
            peer="pthread_rwlock, writers preferred",
            goal=goal,
            setup=partial(_drain, readers),
            rounds=7,
        )
    for bars in (1, 6):
        yield Benchmark(
            name=f"zap-{bars}",
            what=f"zap of {bars} BAR{'s' * (bars > 1)}, 48 MiB populated",
            unit="µs",
            peer="mmap(MAP_FIXED) of the range",
            goal=1.1,
            setup=partial(_zap, bars),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run these benchmarks alone: names as arguments choose, ``--json`` prints the results as a list of objects."""
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    names = [argument for argument in chosen if argument != "--json"]
    where = f"natively, {os.cpu_count()} CPUs, Linux {os.uname().release}, Python {sys.version.split()[0]}"
    results = [measure.run(each, where) for each in benchmarks() if not names or each.name in names]
    if "--json" in chosen:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
    elif results:
        print(report.table(results))
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
