"""Threads that do something over and over: counted, checked, and stopped with a deadline."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable

__all__ = ["Crew"]

_LEAST = 6  # a busy machine does few in a second


class Crew:
    """Workers that call a function until they are sent home.

    What a function returns without an exception was right: it checks by itself. Errors that a worker was told to
    expect are counted; any other ends the shift.
    """

    def __init__(self) -> None:
        self._home = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done: Counter[str] = Counter()
        """How often each worker did its work."""
        self.refused: Counter[str] = Counter()
        """How often it was told by an expected error that it could not."""
        self.wrong: list[str] = []
        """Tracebacks of everything else."""

    def hire(self, name: str, work: Callable[[], object], expected: tuple[type[Exception], ...] = ()) -> None:
        """Let a thread call ``work`` again and again."""
        thread = threading.Thread(target=self._shift, args=(name, work, expected), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _shift(self, name: str, work: Callable[[], object], expected: tuple[type[Exception], ...]) -> None:
        while not self._home.is_set():
            try:
                work()
                self.done[name] += 1
            except expected:
                self.refused[name] += 1
                time.sleep(0.0005)  # who is refused looks again soon, not at once
            except BaseException:
                self.wrong.append(f"{name}:\n{traceback.format_exc()}")
                self._home.set()

    @property
    def well(self) -> bool:
        """Tell whether nothing went wrong so far."""
        return not self._home.is_set()

    @property
    def at_work(self) -> list[str]:
        """Names of the workers that have not gone home."""
        return [thread.name for thread in self._threads if thread.is_alive()]

    def repeat(self, seconds: float, *steps: Callable[[], object], busy: float = 0.7) -> int:
        """Do the steps in turn for so many seconds, six of them at least, while nothing is wrong; give how many.

        After each ``busy`` seconds everybody gets some work done undisturbed.
        """
        turns, end = 0, time.monotonic() + seconds
        while self.well and (turns < _LEAST or time.monotonic() < end):
            pause = time.monotonic() + busy
            while not self._home.is_set() and (turns < len(steps) or time.monotonic() < pause):
                steps[turns % len(steps)]()
                turns += 1
            self.rest()
        return turns

    def rest(self, timeout: float = 60.0) -> None:
        """Wait until everybody has done some work.

        Raises:
            AssertionError: somebody has not.
        """
        before, deadline = self.done.copy(), time.monotonic() + timeout
        while self.well and (
            idle := [each.name for each in self._threads if self.done[each.name] <= before[each.name]]
        ):
            assert time.monotonic() < deadline, f"no work done for {timeout:g} s: {', '.join(idle)}; {self}"
            time.sleep(0.01)

    def send_home(self, *, all_worked: bool = True, timeout: float = 30.0) -> None:
        """Stop all workers.

        Raises:
            AssertionError: something went wrong, a worker hangs, or (with ``all_worked``) one never got its work done.
        """
        self._home.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self.at_work:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        assert not self.wrong, "\n".join(self.wrong)
        assert not self.at_work, f"hung: {', '.join(self.at_work)}"
        idle = [thread.name for thread in self._threads if not self.done[thread.name]]
        assert not (idle and all_worked), f"never got their work done: {', '.join(idle)}; {self}"

    def __str__(self) -> str:
        rows = sorted({*self.done, *self.refused})
        return ", ".join(f"{name} {self.done[name]} (+{self.refused[name]} refused)" for name in rows)
