"""Results as a chart: SVG, a line for each ratio against its goal, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.model import Result
from benchmarks.report import number

__all__ = ["draw"]

_ROW, _TOP, _LABELS, _WIDTH, _RIGHT = 22, 58, 380, 460, 150
_LEAST, _MOST = 1 / 8, 8.0
_GOOD, _BAD, _INK, _FAINT = "#1a7f37", "#b35900", "#1f2328", "#d0d7de"


def _advantage(ratio: float, result: Result) -> float:
    """Tell how many times better than the goal a ratio is; below 1 it is missed."""
    if ratio <= 0:
        return _MOST
    return ratio / result.goal if result.higher else result.goal / ratio


def _place(advantage: float) -> float:
    share = math.log(min(max(advantage, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return _LABELS + share * _WIDTH


def draw(results: Sequence[Result]) -> str:
    """Make the chart; right of the middle line the goal is reached.

    Each row has a bar from the goal to the median ratio, and a thin line over the middle half of the rounds.
    """
    height = _TOP + _ROW * len(results) + 16
    width = _LABELS + _WIDTH + _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15">Ratios against their goals: {sum(each.met for each in results)} of '
        f"{len(results)} reached</text>",
    ]
    for factor in (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0):
        x = _place(factor)
        label = "goal" if factor == 1 else f"{factor:g} times better" if factor > 1 else f"{1 / factor:g} times worse"
        colour = _INK if factor == 1 else _FAINT
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - 12}" stroke="{colour}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle" font-size="10">{label}</text>')
    parts += [_line(result, _TOP + _ROW * row) for row, result in enumerate(results)]
    return "\n".join([*parts, "</svg>", ""])


def _line(result: Result, y: int) -> str:
    goal, median = _place(1), _place(_advantage(result.ratio, result))
    low, high = sorted(_place(_advantage(each, result)) for each in result.quartiles)
    colour = _GOOD if result.met else _BAD
    words = f"{number(result.ratio)} ({'≥' if result.higher else '≤'} {result.goal:g})"
    title = escape(
        f"{result.what} / {result.peer}: {number(result.value)} and {number(result.peer_value)} {result.unit}"
    )
    middle = y + _ROW / 2
    return "\n".join(
        [
            f"<g><title>{title}</title>",
            f'<text x="{_LABELS - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(result.what)}</text>',
            f'<rect x="{min(goal, median):.1f}" y="{y + 5}" width="{abs(median - goal):.1f}" height="{_ROW - 10}" '
            f'fill="{colour}" fill-opacity="0.75"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="{_INK}"/>',
            f'<text x="{_LABELS + _WIDTH + 12}" y="{middle + 4:.1f}">{escape(words)}</text></g>',
        ]
    )
