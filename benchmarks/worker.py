"""Run the benchmarks of one place in this process: ``python -m benchmarks.worker native|guest OUTPUT.json``.

``python -m benchmarks`` starts it, here or in a guest. Benchmarks that fail are reported, and the others run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import traceback
from pathlib import Path

from benchmarks import catalog, measure, report
from benchmarks.model import Result

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Measure, write what came out; return 1 when a benchmark failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("place", choices=sorted(catalog.MODULES))
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("patterns", nargs="*")
    chosen = parser.parse_args(arguments)
    results: list[Result] = []
    failed = 0
    where = _where(chosen.place)
    for benchmark in catalog.find(chosen.place, chosen.patterns):
        try:
            result = measure.run(benchmark, where, rounds=chosen.rounds)
        except Exception:
            failed += 1
            traceback.print_exc()
            measure.say(f"{benchmark.name}: failed")
            continue
        results.append(result)
        report.save(chosen.output, results)
        measure.say(f"{benchmark.name}: {report.number(result.ratio)} ({'met' if result.met else 'missed'})")
    report.save(chosen.output, results)
    return 1 if failed else 0


def _where(place: str) -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = "QEMU guest" if place == "guest" else f"natively, {_processor()}"
    return f"{place}: {machine}, {os.cpu_count()} CPUs, Linux {platform.release()}, {python}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
