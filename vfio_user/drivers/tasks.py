"""How tasks of asyncio wait for what one queue brings: the event loop watches the queue's interrupt.

asyncio is imported only when somebody awaits: it costs more than the rest of the driver.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from vfio_user.drivers.waiting import LOOK_EVERY, unless
from vfio_user.errors import ClosedError, VfioError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol, TypeAlias

    from vfio_user.device.vector import IrqVector

    class Awaited(Protocol):
        """A command in flight."""

        def done(self) -> bool:
            """Tell whether it has ended."""

        def add_done_callback(self, callback: Callable[..., None]) -> None:
            """Call a function when it has."""

    Listen: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

__all__ = ["TaskWaiter"]


class TaskWaiter:
    """Lets tasks wait for commands of a queue, in any number of event loops.

    Lifetime:
        As long as its queue. A loop is watched while one of its tasks waits, and not longer.
    Locking:
        Each loop calls from its own thread; no lock of the queue may be held.
    """

    def __init__(self, vector: IrqVector | None, *, poll: Callable[[], int], diagnose: Callable[[], None]) -> None:
        """Wait on ``vector``, or by polling without one; see `Waiter`."""
        self._vector = vector
        self._poll = poll
        self._diagnose = diagnose
        self._lock = threading.Lock()
        self._sleepers: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    async def wait(self, commands: Sequence[Awaited], deadline: float) -> bool:
        """Let the event loop run until all are done; `False` when the deadline comes first.

        Raises:
            VfioError: polling failed, or the controller is fatal or gone, while they are not done.
        """
        import asyncio

        for command in commands:
            while not command.done():
                unless(command.done, self._poll)
                if command.done():
                    break
                if time.monotonic() >= deadline:
                    unless(command.done, self._diagnose)
                    return all(each.done() for each in commands)
                if self._vector is None:
                    await asyncio.sleep(0)
                else:
                    woken, wake = _alarm()
                    command.add_done_callback(wake)
                    await self._sleep(woken, command.done, deadline)
        return True

    async def wait_until(self, done: Callable[[], bool], listen: Listen, deadline: float) -> bool:
        """Let the event loop run until ``done()``; `False` when the deadline comes first.

        Args:
            done: what is waited for; it has been false a moment ago.
            listen: has a function called whenever it may have become true, and returns what ends that.
            deadline: on the monotonic clock.

        Raises:
            VfioError: as `wait`.
        """
        import asyncio

        while not done():
            if time.monotonic() >= deadline:
                unless(done, self._diagnose)
                return done()
            if self._vector is None:
                await asyncio.sleep(0)
                unless(done, self._poll)
                continue
            woken, wake = _alarm()
            end = listen(wake)
            try:
                # Whoever polled before this listened has told nobody.
                unless(done, self._poll)
                if not done():
                    await self._sleep(woken, done, deadline)
            finally:
                end()
        return True

    async def _sleep(self, woken: asyncio.Future[None], done: Callable[[], bool], deadline: float) -> None:
        """Sleep until the interrupt, the alarm, or for as long as nobody needs to look."""
        import asyncio

        try:
            with self._watched(asyncio.get_running_loop(), woken):
                async with asyncio.timeout(max(0.0, min(LOOK_EVERY, deadline - time.monotonic()))):
                    await woken
        except TimeoutError:
            unless(done, self._diagnose)
        except ClosedError:
            # The driver was stopped in this instant: it says so in its own words.
            unless(done, self._poll)
            await asyncio.sleep(0)
        except VfioError:
            if not done():
                raise

    @contextlib.contextmanager
    def _watched(self, loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> Iterator[None]:
        """Have the loop watch the interrupt while ``woken`` is waited for."""
        assert self._vector is not None
        with self._lock:
            if loop not in self._sleepers:
                self._vector._listen(loop, self._on_interrupt, loop)
            sleepers = self._sleepers.setdefault(loop, [])
            sleepers.append(woken)
        try:
            yield
        finally:
            with self._lock:
                sleepers.remove(woken)
                if not sleepers:
                    del self._sleepers[loop]
                    self._vector._unlisten(loop)

    def _on_interrupt(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._vector is not None
        try:
            self._vector.drain()
            self._poll()
        except VfioError as exc:
            # Whoever waits here would have met it when polling himself.
            for woken in tuple(self._sleepers.get(loop, ())):
                if not woken.done():
                    woken.set_exception(exc)


def _alarm() -> tuple[asyncio.Future[None], Callable[..., None]]:
    """Make something to await in this event loop, and what wakes it from any thread."""
    import asyncio

    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake(*_: object) -> None:
        # The loop may be closed by now; then nobody waits in it.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, woken)

    return woken, wake


def _settle(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
