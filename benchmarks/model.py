"""What a benchmark is, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

__all__ = ["METHOD", "Benchmark", "Pair", "Result", "quotient"]

METHOD = """\
Method: each row is measured in short slices, ours, peer, peer, ours, in one process or boot of the guest. A ratio is
that of one round; the median of the rounds' ratios is compared with the goal. Native rows count the processor's time
where nobody waits. A busy machine widens the spread, and makes waking up slower, ours more than C's: caches are cold.
The guest is emulated (unless there is KVM) with all of its processors in one thread, and its devices in others beside.
That distorts even ratios: Python is slowed down about 25 times, devices and the kernel's waits hardly, so what Python
does for each command or request weighs more than on hardware; doorbells, interrupts and IOMMU invalidations leave the
emulation and are dear, which costs the kernel's drivers more than ours. The guest's rates say nothing of hardware."""


def quotient(ours: float, peer: float) -> float:
    """Divide ours by the peer's: the ratio of most benchmarks."""
    return ours / peer


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ways of doing the same, ready to be measured.

    Lifetime:
        Ends with the context manager that `Benchmark.setup` returned.
    Locking:
        The two are called in turn, by one thread.
    """

    ours: Callable[[], float]
    """Do one slice of work with ``vfio_user``; give its cost in the benchmark's unit. What has to be prepared for a
    slice is not a part of the cost: each slice takes its own time."""
    peer: Callable[[], float]
    """The same with the peer."""
    note: Callable[[], str] = str
    """Words for the table, asked when all rounds are done: a maximum, a size that was chosen, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One line of the table."""

    name: str
    """Short, with hyphens; stays the same from version to version, so that results can be compared."""
    what: str
    """What is measured, in a few words."""
    unit: str
    """Unit of the costs that the slices give: ``"ns"``, ``"ms"``."""
    peer: str
    """What it is compared with, in a few words."""
    goal: float
    """The ratio that is wanted, at most; at least, with `higher`."""
    setup: Callable[[], AbstractContextManager[Pair]]
    """Prepare both ways; what it opens is closed on the way out."""
    higher: bool = False
    """The slices give a rate instead of a cost, and a greater ratio is better."""
    rounds: int = 11
    """How often both are measured, after one round that does not count."""
    ratio: Callable[[float, float], float] = quotient
    """What is compared with the goal, from ours and the peer's of one round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a benchmark; one object of ``results.json``."""

    name: str
    """`Benchmark.name`."""
    what: str
    """`Benchmark.what`."""
    unit: str
    """`Benchmark.unit`."""
    value: float
    """Median of ours."""
    peer: str
    """`Benchmark.peer`."""
    peer_value: float
    """Median of the peer's."""
    ratio: float
    """Median of the rounds' ratios."""
    spread: tuple[float, float]
    """Least and greatest ratio of a round."""
    quartiles: tuple[float, float]
    """First and third quartile of the rounds' ratios."""
    goal: float
    """`Benchmark.goal`."""
    higher: bool
    """`Benchmark.higher`."""
    met: bool
    """Whether the median ratio reaches the goal."""
    rounds: int
    """How many rounds were counted."""
    where: str
    """Machine, kernel and Python."""
    note: str
    """Further words; empty for none."""
