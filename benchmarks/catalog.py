"""Which benchmarks there are, and where each module's run."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterator, Sequence

from benchmarks.model import Benchmark

__all__ = ["DEVICES", "MODULES", "find"]

#: By place, the modules; each has `benchmarks()`, a generator of `Benchmark`.
MODULES: dict[str, tuple[str, ...]] = {
    "native": ("benchmarks.micro", "benchmarks.rings", "benchmarks.interrupts", "benchmarks.imports"),
    "guest": ("benchmarks.bars", "benchmarks.mappings", "benchmarks.resets", "benchmarks.nvme", "benchmarks.opening"),
}
#: What the guest's benchmarks need.
DEVICES = ("edu", "nvme,size=64M", "ivshmem,size=256M", *("nvme,size=1M",) * 15)


def find(place: str, patterns: Sequence[str]) -> Iterator[Benchmark]:
    """Give the benchmarks of a place whose names match one of the patterns (all, without patterns)."""
    for module in MODULES[place]:
        for benchmark in importlib.import_module(module).benchmarks():
            if any(fnmatch.fnmatch(benchmark.name, pattern) for pattern in patterns or ("*",)):
                yield benchmark
