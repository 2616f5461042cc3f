"""Benchmark of ``import vfio_user``, natively: what it adds to the start of the interpreter, bytecode cached."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.model import Benchmark, Pair

__all__ = ["benchmarks"]

_RUNS = 3


def _start(code: str, environment: dict[str, str]) -> float:
    """Start an interpreter that runs ``code``; give the milliseconds until it has ended."""
    begin = time.perf_counter()
    for _ in range(_RUNS):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return 1e3 * (time.perf_counter() - begin) / _RUNS


@contextmanager
def _pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="vfio-user-bytecode-") as cache:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        yield Pair(partial(_start, "import vfio_user", environment), partial(_start, "pass", environment))


def _added(ours: float, peer: float) -> float:
    return ours - peer


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    yield Benchmark(
        name="import",
        what="start with `import vfio_user`; the difference, ms",
        unit="ms",
        peer="the interpreter's start alone",
        goal=50.0,
        setup=_pair,
        ratio=_added,
    )
