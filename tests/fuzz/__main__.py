"""Fuzz what the package reads of the kernel and of other processes, guided by coverage, for a fixed time.

    python -m tests.fuzz [--seconds 60] [TARGET ...]

``make fuzz`` does this. It needs atheris, whose wheels come later than a new Python does, so it is no lane of
``make test``: that feeds the same targets with hypothesis (``tests/unit/test_hostile.py``).

Every target gets an equal share of the time, in a process of its own. What was found to reach new code is kept in
``.out/fuzz`` and is where the next run begins; input that breaks something is left there, and named.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vfio_user"], exclude=["vfio_user._uapi", "vfio_user._mmio"]):
    from tests.fuzz.targets import SEEDS, TARGETS, run

OUT = Path(__file__).resolve().parents[2] / ".out" / "fuzz"


def main(argv: list[str]) -> int:
    """Fuzz, and give 0 when nothing broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (default: %(default)s)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="by default all")
    arguments = parser.parse_args(argv)
    chosen = arguments.targets or list(TARGETS)
    unknown = sorted(set(chosen) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    share = max(1, arguments.seconds // len(chosen))
    broken = [name for name in chosen if not _fuzz(name, share)]
    print(f"{len(chosen) - len(broken)} targets hold, {len(broken)} broke {' '.join(broken)}".rstrip())
    return 1 if broken else 0


def _fuzz(name: str, seconds: int) -> bool:
    """Fuzz one target in a child, which inherits the instrumented code; tell whether it held."""
    corpus, log = OUT / name, OUT / f"{name}.log"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS.get(name, ())):
        (corpus / f"seed-{number}").write_bytes(seed)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            options = [f"-max_total_time={seconds}", "-timeout=20", "-max_len=5000", "-print_final_stats=1"]
            atheris.Setup(["fuzz", *options, f"-artifact_prefix={OUT}/{name}-", str(corpus)], _one(name))
            atheris.Fuzz()
            code = 0
        finally:
            os._exit(code)
    held = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    said = log.read_text(errors="replace")
    tries = next((line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line), "?")
    print(f"{name:16} {tries:>9} inputs in {seconds} s, {len(list(corpus.iterdir())):>4} kept", flush=True)
    if not held:
        print(said, flush=True)
    return held


def _one(name: str) -> object:
    target = TARGETS[name]

    def feed(data: bytes) -> None:
        run(target, data)

    return feed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
