"""The readers/writer protocol against a model: a state machine drives threads one step at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vfio_user.errors import DeadlineError, LockOrderError, MemoryLockBusyError, VfioError, ZappedError

from .conftest import Bar

NUM_ACTORS = 4
actors = st.integers(0, NUM_ACTORS - 1)


class Actor:
    """A thread that does what it is told, one call at a time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.tid = self.do(threading.get_native_id)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._results.put(call())
            except VfioError as error:
                self._results.put(type(error))

    def do(self, call: Callable[[], object]) -> object:
        """Return the result of the call, or the class of its error."""
        self._calls.put(call)
        return self._results.get(timeout=20)

    def stop(self) -> None:
        self._calls.put(None)
        self._thread.join(20)


class Protocol(RuleBasedStateMachine):
    """What each call must answer, by the number of sections and locks that each thread has."""

    @initialize()
    def open(self) -> None:
        self.bar = Bar()
        self.actors = [Actor() for _ in range(NUM_ACTORS)]
        self.reading = [0] * NUM_ACTORS
        self.owner: int | None = None
        self.depth = 0
        self.zapped = False

    def teardown(self) -> None:
        if not hasattr(self, "bar"):
            return
        for actor in self.actors:
            actor.stop()  # what it still holds it lets go of
        self.bar.close()

    # -- what the model says

    def others_read(self, actor: int) -> bool:
        return any(depth for index, depth in enumerate(self.reading) if index != actor)

    def entering(self, actor: int) -> Any:
        """None, or the error of a reader that does not wait."""
        if self.zapped:
            return ZappedError
        if self.owner not in (None, actor) and not self.reading[actor]:
            return MemoryLockBusyError
        return None

    def locking(self, actor: int) -> Any:
        if self.owner == actor:
            return None
        if self.reading[actor]:
            return LockOrderError
        if self.owner is not None or self.others_read(actor):
            return MemoryLockBusyError
        return None

    # -- readers

    @rule(actor=actors)
    def enter(self, actor: int) -> None:
        expected = self.entering(actor)
        if expected is MemoryLockBusyError:
            # it would have a second's patience: ask with a deadline instead
            expected = LockOrderError if self.reading[actor] else DeadlineError
            assert self.actors[actor].do(lambda: self.bar.window.acquire_read(wait=0)) is expected
            return
        assert self.actors[actor].do(self.bar.window.acquire_read) is expected
        self.reading[actor] += expected is None

    @rule(actor=actors)
    def leave(self, actor: int) -> None:
        expected = None if self.reading[actor] else LockOrderError
        assert self.actors[actor].do(self.bar.window.release_read) is expected
        self.reading[actor] -= expected is None

    @rule(actor=actors)
    def access(self, actor: int) -> None:
        if self.entering(actor) is MemoryLockBusyError:
            return
        expected = self.entering(actor) or 0
        assert self.actors[actor].do(lambda: self.bar.mmio.read32(0)) == expected

    @rule(actor=actors)
    def wait_live(self, actor: int) -> None:
        expected: Any = None
        if self.reading[actor]:
            expected = LockOrderError
        elif self.zapped or self.owner not in (None, actor):
            expected = DeadlineError
        assert self.actors[actor].do(lambda: self.bar.window.wait_live(0)) is expected

    # -- writers

    @rule(actor=actors, timeout=st.sampled_from([0, 0.001]))
    def lock(self, actor: int, timeout: float) -> None:
        expected = self.locking(actor)
        assert self.actors[actor].do(lambda: self.bar.window.lock_write(timeout)) is expected
        if expected is None:
            self.owner, self.depth = actor, self.depth + 1

    @rule(actor=actors)
    def try_lock(self, actor: int) -> None:
        expected = self.locking(actor)
        result = self.actors[actor].do(self.bar.window.try_lock_write)
        assert result == {None: True, MemoryLockBusyError: False}.get(expected, expected)
        if expected is None:
            self.owner, self.depth = actor, self.depth + 1

    @rule(actor=actors)
    def unlock(self, actor: int) -> None:
        expected = None if self.owner == actor else LockOrderError
        assert self.actors[actor].do(self.bar.window.unlock_write) is expected
        if expected is None:
            self.depth -= 1
            self.owner = actor if self.depth else None

    @rule(actor=actors, revive=st.booleans())
    def zap_or_revive(self, actor: int, revive: bool) -> None:
        expected = self.locking(actor)
        call = (
            (lambda: self.bar.window.revive(self.bar.fd, timeout=0.001))
            if revive
            else (lambda: self.bar.window.zap(timeout=0.001))
        )
        assert self.actors[actor].do(call) is expected
        if expected is None:
            self.zapped = not revive

    @rule(actor=actors)
    def end_thread(self, actor: int) -> None:
        """What a thread holds when it ends is let go of; another takes its place."""
        self.actors[actor].stop()
        self.actors[actor] = Actor()
        self.reading[actor] = 0
        if self.owner == actor:
            self.owner, self.depth = None, 0

    # -- what always holds

    @invariant()
    def holders(self) -> None:
        expected = [] if self.owner is None else [self.actors[self.owner].tid]
        readers = {self.actors[index].tid for index, depth in enumerate(self.reading) if depth}
        holders = [tid for tid, _ in self.bar.window.holders()]
        assert holders[: len(expected)] == expected
        assert set(holders[len(expected) :]) == readers
        assert len(holders) == len(expected) + len(readers)

    @invariant()
    def never_a_reader_beside_a_writer(self) -> None:
        if self.owner is not None:
            assert not self.others_read(self.owner)


TestProtocol = pytest.mark.timeout(120)(Protocol.TestCase)
Protocol.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
