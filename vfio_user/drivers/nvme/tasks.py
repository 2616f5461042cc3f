"""How tasks of asyncio wait for commands of one queue: the event loop watches the queue's interrupt.

asyncio is imported only when somebody awaits: it costs more than the rest of the driver.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from vfio_user.drivers.waiting import LOOK_EVERY, unless
from vfio_user.errors import VfioError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.nvme.command import Command

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

    async def wait(self, commands: Sequence[Command], deadline: float) -> bool:
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
                    await self._sleep(command, min(LOOK_EVERY, deadline - time.monotonic()))
        return True

    async def _sleep(self, command: Command, timeout: float) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def wake(_: Command) -> None:
            # The loop may be closed by now; then nobody waits in it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, woken)

        command.add_done_callback(wake)
        with self._watched(loop, woken):
            try:
                async with asyncio.timeout(max(0.0, timeout)):
                    await woken
            except TimeoutError:
                unless(command.done, self._diagnose)
            except VfioError:
                if not command.done():
                    raise

    @contextlib.contextmanager
    def _watched(self, loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> Iterator[None]:
        """Have the loop watch the interrupt while ``woken`` is waited for."""
        assert self._vector is not None
        fd = self._vector.fileno()
        with self._lock:
            sleepers = self._sleepers.setdefault(loop, [])
            sleepers.append(woken)
            if len(sleepers) == 1:
                loop.add_reader(fd, self._on_interrupt, loop)
        try:
            yield
        finally:
            with self._lock:
                sleepers.remove(woken)
                if not sleepers:
                    del self._sleepers[loop]
                    loop.remove_reader(fd)

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


def _settle(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
