"""Run all benchmarks and print one table: ``python -m benchmarks`` (``make bench``)."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import build, catalog, chart, report
from benchmarks.model import METHOD, Result
from vfio_user.testing import Guest, GuestError, cache, run
from vfio_user.testing.guest import OUTPUT_IN_GUEST

_TOP = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results.json"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; goals that are missed are no failure, benchmarks that break are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("patterns", nargs="*", metavar="NAME", help="only these benchmarks; * and ? match")
    parser.add_argument("--place", choices=sorted(catalog.MODULES), help="only there")
    parser.add_argument("--kernel", default="auto", help="the guest's; auto: feature if it was built before, else 6.12")
    parser.add_argument("--rounds", type=int, help="in place of each benchmark's own number")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for each place (%(default)g)")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="the results; a chart goes beside it (.svg)")
    chosen = parser.parse_args(arguments)
    build.compile_all()
    results: list[Result] = []
    failed = False
    for place in [chosen.place] if chosen.place else [each for each, has in catalog.MODULES.items() if has]:
        with tempfile.TemporaryDirectory(prefix="vfio-user-bench-") as folder:
            code = _run(place, Path(folder), chosen)
            found = Path(folder) / "results.json"
            results += report.load(found) if found.exists() else []
            failed |= code != 0
    if not results:
        print(f"no benchmark {'came to its end' if failed else 'matches'}", file=sys.stderr)
        return 1
    report.save(chosen.output, results)
    chosen.output.with_suffix(".svg").write_text(chart.draw(results))
    print(report.table(results))
    print(f"\n{METHOD}")
    return 1 if failed else 0


def _run(place: str, folder: Path, chosen: argparse.Namespace) -> int:
    rounds = ["--rounds", str(chosen.rounds)] if chosen.rounds else []
    command = [sys.executable, "-m", "benchmarks.worker", *rounds, place]
    try:
        if place == "native":
            line = [*command, str(folder / "results.json"), *chosen.patterns]
            return subprocess.run(line, cwd=_TOP, timeout=chosen.timeout, check=False).returncode
        guest = Guest(kernel=_kernel(chosen.kernel), devices=catalog.DEVICES)
        line = [*command, f"{OUTPUT_IN_GUEST}/results.json", *chosen.patterns]
        streams = (sys.stdout.buffer, sys.stderr.buffer)
        return run(
            guest, line, cwd=_TOP, output=folder, timeout=chosen.timeout, stdout=streams[0], stderr=streams[1]
        ).returncode
    except (GuestError, subprocess.TimeoutExpired) as error:
        print(f"{place}: {error}", file=sys.stderr)
        return 1


def _kernel(name: str) -> str:
    if name != "auto":
        return name
    return "feature" if cache.entries("feature-kernel", "*") else "6.12"


if __name__ == "__main__":
    sys.exit(main())
