"""Do several things that wait for the kernel at the same time, in threads; all or none."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["all_or_none"]

T = TypeVar("T")

_MOST_THREADS = 32


def all_or_none(makers: Sequence[Callable[[], T]], undo: Callable[[T], object]) -> list[T]:
    """Call functions in threads and give what they return, in order.

    Args:
        makers: the functions.
        undo: takes back what one of them has returned, when another has raised or the wait was interrupted; last first.

    Raises:
        BaseException: the first function, in order, that raised; what the others raised is in its notes.
    """
    made: dict[int, T] = {}
    failed: dict[int, BaseException] = {}
    turns = itertools.count()

    def work() -> None:
        while not failed and (turn := next(turns)) < len(makers):
            try:
                made[turn] = makers[turn]()
            except BaseException as error:
                failed[turn] = error

    try:
        _in_threads(work, min(len(makers), _MOST_THREADS))
    except BaseException as error:
        failed[-1] = error
    if not failed:
        return [made[turn] for turn in range(len(makers))]
    first = failed.pop(min(failed))
    for other in failed.values():
        first.add_note(f"another failed as well: {other}")
    for turn in sorted(made, reverse=True):
        try:
            undo(made[turn])
        except Exception as error:
            first.add_note(f"and what had succeeded could not be taken back: {error}")
    raise first


def _in_threads(work: Callable[[], None], count: int) -> None:
    """Run something in so many threads, of which this is one; all have ended when this returns or raises."""
    threads: list[threading.Thread] = []
    try:
        for _ in range(count - 1):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            threads.append(thread)
        work()
    finally:
        for thread in threads:
            thread.join()
