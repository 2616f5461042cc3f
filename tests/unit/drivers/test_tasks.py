"""Tasks that wait for a driver's queue, when the driver ends in the same event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

from vfio_user import IrqVector
from vfio_user.drivers.tasks import TaskWaiter


def test_a_file_that_gets_the_number_of_a_closed_vector_is_not_deaf() -> None:
    """The driver stops under a task that waits: its vector is closed before the task has left."""

    async def main() -> None:
        vector, listeners, over = IrqVector(0, "vector"), list[Callable[[], None]](), False
        waiter = TaskWaiter(vector, poll=lambda: 0, diagnose=lambda: None)

        def listen(listener: Callable[[], None]) -> Callable[[], None]:
            listeners.append(listener)
            return lambda: listeners.remove(listener)

        task = asyncio.create_task(waiter.wait_until(lambda: over, listen, time.monotonic() + 50))
        while not listeners:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        number = vector.fileno()
        over = True
        for listener in tuple(listeners):
            listener()
        vector._close()
        here, there = socket.socketpair()
        with here, there:
            if here.fileno() != number:
                os.dup2(here.fileno(), number, inheritable=False)
            arrived = asyncio.Event()
            asyncio.get_running_loop().add_reader(number, arrived.set)
            there.send(b"x")
            async with asyncio.timeout(10):
                assert await task
                await arrived.wait()
            assert asyncio.get_running_loop().remove_reader(number), "the task has taken the stranger's reader away"
            if number != here.fileno():
                os.close(number)

    asyncio.run(main())
