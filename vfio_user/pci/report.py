"""What a reset did, phase by phase, and how long each took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from vfio_user.kernel import tracing

__all__ = ["PhaseClock", "ResetPhase", "ResetReport"]

RESET_PHASE = "reset"


@dataclass(frozen=True, slots=True)
class ResetPhase:
    """One phase of a reset."""

    name: str
    """What was done."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, slots=True)
class ResetReport:
    """What a reset did. ``str()`` makes a table of it for people, `to_json` plain data.

    Lifetime:
        A value.
    Locking:
        None; immutable.
    """

    kind: str
    """What was done: ``"hot reset"``, ``"function reset"``."""
    devices: tuple[str, ...]
    """The devices of this process that were reset, ordered."""
    phases: tuple[ResetPhase, ...]
    """The phases in their order."""
    attempts: int
    """How often the kernel was asked: more than once when it was busy."""

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(each.seconds for each in self.phases)

    @property
    def reset_seconds(self) -> float:
        """How long the kernel took, which is what the same request takes by itself."""
        return sum(each.seconds for each in self.phases if each.name == RESET_PHASE)

    def to_json(self) -> dict[str, object]:
        """Give it as plain data; times are in seconds."""
        return {
            "kind": self.kind,
            "devices": list(self.devices),
            "attempts": self.attempts,
            "seconds": self.seconds,
            "phases": [{"name": each.name, "seconds": each.seconds} for each in self.phases],
        }

    def __str__(self) -> str:
        width = max(len(each.name) for each in self.phases)
        lines = [f"  {each.name:<{width}} {each.seconds * 1e3:>10.3f} ms" for each in self.phases]
        head = f"{self.kind} of {', '.join(self.devices)}: {self.seconds * 1e3:.3f} ms"
        return "\n".join([head, *lines])


class _Phase:
    # No generator: a reset has a dozen phases, and is to cost next to nothing beside the kernel's part.
    __slots__ = ("_begin", "_name", "_phases")

    def __init__(self, phases: dict[str, float], name: str) -> None:
        self._phases = phases
        self._name = name

    def __enter__(self) -> None:
        self._begin = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = time.monotonic_ns()
        self._phases[self._name] = self._phases.get(self._name, 0.0) + (end - self._begin) * 1e-9
        if tracing.sink is not None:
            tracing.sink.span("reset", self._name, self._begin, end, {})


class PhaseClock:
    """Take the time of phases.

    Lifetime:
        One for each reset.
    Locking:
        None: one thread uses it.
    """

    def __init__(self) -> None:
        self._phases: dict[str, float] = {}

    def phase(self, name: str) -> _Phase:
        """Take the time of a ``with`` block; blocks of one name are added up."""
        return _Phase(self._phases, name)

    @property
    def phases(self) -> tuple[ResetPhase, ...]:
        """The phases so far, in the order in which they began to be."""
        return tuple(ResetPhase(name, seconds) for name, seconds in self._phases.items())
