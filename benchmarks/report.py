"""Results as a file and as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.model import Result

__all__ = ["load", "number", "save", "table", "text_table"]


def save(path: Path, results: Iterable[Result]) -> None:
    """Write results as a list of JSON objects."""
    path.write_text(json.dumps([dataclasses.asdict(each) for each in results], indent=1) + "\n")


def load(path: Path) -> list[Result]:
    """Read what `save` wrote.

    Raises:
        ValueError: it is no such file.
    """
    rows = json.loads(path.read_text())
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of results")
    return [_result(path, row) for row in rows]


def _result(path: Path, row: Any) -> Result:
    try:
        return Result(**row | {"spread": tuple(row["spread"]), "quartiles": tuple(row["quartiles"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} has an object that is no result: {error}") from None


def table(results: Sequence[Result]) -> str:
    """Make the table that a person reads."""
    rows = [("what", "ours", "peer", "ratio", "spread", "goal", "met", "")]
    rows += [
        (
            each.what,
            f"{number(each.value)} {each.unit}",
            f"{number(each.peer_value)} {each.unit} ({each.peer})",
            number(each.ratio),
            f"{number(each.spread[0])} … {number(each.spread[1])}",
            f"{'≥' if each.higher else '≤'} {each.goal:g}",
            "yes" if each.met else "NO",
            each.note,
        )
        for each in results
    ]
    places = sorted({each.where for each in results})
    met = sum(each.met for each in results)
    end = f"{met} of {len(results)} goals met; ratio and spread are median, least and greatest of the rounds' ratios"
    return "\n".join([text_table(rows), "", *places, end])


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns of text; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths if width), *lines[1:]])


def number(value: float) -> str:
    """Write a number with three digits that matter."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
