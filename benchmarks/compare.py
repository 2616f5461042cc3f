"""Compare two files of results: ``python -m benchmarks.compare before.json after.json``.

Absolute figures of two runs say little (another boot, a busier machine); the ratios to a peer that ran beside each are
what is compared. A change counts when it is larger than what the rounds' middle halves leave open.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.model import Result
from benchmarks.report import load, number, text_table

__all__ = ["change", "main"]


def change(before: Result, after: Result) -> str:
    """Say whether a ratio became better, worse, or is about the same."""
    if before.quartiles[0] <= after.quartiles[1] and after.quartiles[0] <= before.quartiles[1]:
        return "about the same"
    return "better" if (after.ratio < before.ratio) != after.higher else "WORSE"


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; return 1 when something became worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    chosen = parser.parse_args(arguments)
    before = {each.name: each for each in load(chosen.before)}
    after = {each.name: each for each in load(chosen.after)}
    rows = [("what", "before", "after", "change")]
    worse = 0
    for name in [*before, *(name for name in after if name not in before)]:
        first, second = before.get(name), after.get(name)
        words = change(first, second) if first and second else "only after" if second else "only before"
        worse += words == "WORSE"
        known = second or first
        assert known is not None
        rows.append((known.what, number(first.ratio) if first else "", number(second.ratio) if second else "", words))
    print(text_table(rows))
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main())
