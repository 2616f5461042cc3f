"""What the network tests share: two ports on one hub, and traffic between them that is checked byte by byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from vfio_user.drivers.ethernet import NumberedFrames
from vfio_user.errors import DeadlineError
from vfio_user.testing import GuestDevice

__all__ = ["PATIENCE", "Find", "Port", "carry", "collect"]

Find = Callable[[str], GuestDevice]
PATIENCE = 60.0


class Port(Protocol):
    """What both kinds of ports can do."""

    def send(self, frames: Sequence[bytes], *, timeout: float | None = None) -> None:
        """Send frames."""

    def receive(self, limit: int = 256, *, timeout: float = 0.0) -> list[bytes]:
        """Receive frames."""


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
