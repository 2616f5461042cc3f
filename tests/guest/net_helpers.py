"""What the network tests share: two ports on one hub, and traffic between them that is checked byte by byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from vfio_user.drivers.ethernet import NumberedFrames
from vfio_user.errors import DeadlineError
from vfio_user.testing import GuestDevice

__all__ = ["PATIENCE", "Find", "Port", "carry", "collect", "exchange"]

Find = Callable[[str], GuestDevice]
PATIENCE = 60.0


class Port(Protocol):
    """What both kinds of ports can do."""

    def send(self, frames: Sequence[bytes], *, timeout: float | None = None) -> None:
        """Send frames."""

    def receive(self, limit: int = 256, *, timeout: float = 0.0) -> list[bytes]:
        """Receive frames."""

    async def send_async(self, frames: Sequence[bytes]) -> None:
        """Send frames while the event loop runs."""

    async def flush_async(self) -> None:
        """Wait until they are sent."""

    async def receive_async(self) -> list[bytes]:
        """Receive frames while the event loop runs."""


def collect(port: Port, stream: NumberedFrames, count: int) -> list[int]:
    """Receive until ``count`` frames of the stream have come; their content is right."""
    numbers: list[int] = []
    deadline = time.monotonic() + PATIENCE
    while len(numbers) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"{len(numbers)} of {count} frames came: the last {numbers[-5:]}")
        numbers += stream.check(port.receive(timeout=left))
    return numbers


def carry(sender: Port, receiver: Port, stream: NumberedFrames, sizes: Sequence[int], batch: int = 32) -> None:
    """Send frames of these sizes in batches; each arrives once, in order, with the right content."""
    first = 0
    while first < len(sizes):
        numbers = range(first, min(first + batch, len(sizes)))
        sender.send([stream.make(number, sizes[number]) for number in numbers])
        assert collect(receiver, stream, len(numbers)) == list(numbers)
        first += batch


def exchange(one: Port, other: Port, there: NumberedFrames, back: NumberedFrames) -> None:
    """Send 200 frames each way by tasks of one event loop; each arrives once, with the right content."""

    async def send(port: Port, stream: NumberedFrames) -> None:
        for first in range(0, 200, 40):
            await port.send_async([stream.make(number, 60 + number) for number in range(first, first + 40)])
        await port.flush_async()

    async def receive(port: Port, stream: NumberedFrames) -> list[int]:
        numbers: list[int] = []
        while len(numbers) < 200:
            numbers += stream.check(await port.receive_async())
        return numbers

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            work = (receive(other, there), receive(one, back), send(one, there), send(other, back))
            found = await asyncio.gather(*work)
        for numbers in found[:2]:
            assert numbers is not None
            assert sorted(numbers) == list(range(200))

    asyncio.run(main())
