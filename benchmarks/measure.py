"""Measure pairs: short slices in turn, ratios within a round, medians over the rounds."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.model import Benchmark, Pair, Result

__all__ = ["Round", "run", "say", "summarise"]


@dataclass(frozen=True, slots=True)
class Round:
    """Costs of one round: the mean of the two slices of each."""

    ours: float
    peer: float


def run(benchmark: Benchmark, where: str, *, rounds: int | None = None) -> Result:
    """Measure one benchmark.

    Args:
        benchmark: what to measure.
        where: words for the result.
        rounds: in place of the benchmark's own number.
    """
    with benchmark.setup() as pair:
        _round(pair)  # caches, page tables, lazily made objects
        measured = [_round(pair) for _ in range(rounds or benchmark.rounds)]
        return summarise(benchmark, measured, where, pair.note())


def _round(pair: Pair) -> Round:
    # ours, peer, peer, ours: a machine that becomes faster or slower meanwhile does so for both.
    costs = [_slice(pair.ours), _slice(pair.peer), _slice(pair.peer), _slice(pair.ours)]
    return Round((costs[0] + costs[3]) / 2, (costs[1] + costs[2]) / 2)


def _slice(work: Callable[[], float]) -> float:
    # As `timeit` does: a collection that one slice caused should not be paid for by the next.
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        cost = work()
    finally:
        if enabled:
            gc.enable()
    if cost <= 0:
        raise ValueError(f"a slice cost {cost}: it measured nothing")
    return cost


def summarise(benchmark: Benchmark, rounds: Sequence[Round], where: str, note: str = "") -> Result:
    """Make the result of measured rounds."""
    ratios = sorted(benchmark.ratio(each.ours, each.peer) for each in rounds)
    ratio = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (ratio,) * 3
    return Result(
        name=benchmark.name,
        what=benchmark.what,
        unit=benchmark.unit,
        value=statistics.median(each.ours for each in rounds),
        peer=benchmark.peer,
        peer_value=statistics.median(each.peer for each in rounds),
        ratio=ratio,
        spread=(ratios[0], ratios[-1]),
        quartiles=(low, high),
        goal=benchmark.goal,
        higher=benchmark.higher,
        met=ratio >= benchmark.goal if benchmark.higher else ratio <= benchmark.goal,
        rounds=len(ratios),
        where=where,
        note=note,
    )


def say(line: str) -> None:
    """Tell a person how far it is."""
    print(line, file=sys.stderr, flush=True)
