"""Transfers of any size to and from a block device: several requests in flight, ended orderly by the first error."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from vfio_user.drivers.virtio.errors import VirtioError, VirtioQueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import TypeAlias

    from vfio_user.drivers.virtio.request import Request
    from vfio_user.iommu.buffer import DmaSlice

    Piece: TypeAlias = tuple[DmaSlice, int]
    Flights: TypeAlias = Generator[Request, VirtioError | None, None]

__all__ = ["flights", "run", "run_async"]


def flights(submit: Callable[[DmaSlice, int], Request], pieces: Iterable[Piece]) -> Flights:
    """Submit as many pieces as there is room for; yield each request to be waited for, and be sent its error if any.

    After the first error no more are submitted, those in flight are yielded still, and the error is raised.
    """
    left = deque(pieces)
    flying: deque[Request] = deque()
    error: VirtioError | None = None
    while flying or (left and error is None):
        try:
            while left and error is None:
                flying.append(submit(*left[0]))
                left.popleft()
        except VirtioQueueFullError as full:
            if not flying:
                error = full  # others have the whole queue
        except VirtioError as failure:
            error = failure
        if flying:
            outcome = yield flying.popleft()
            error = error or outcome
    if error is not None:
        raise error


def run(requests: Flights, deadline: float) -> None:
    """Wait for all `flights`; raises the first error."""
    with suppress(StopIteration):
        request = next(requests)
        while True:
            request = requests.send(request.outcome(deadline))


async def run_async(requests: Flights, deadline: float) -> None:
    """Let the event loop run until all `flights` have ended; raises the first error."""
    with suppress(StopIteration):
        request = next(requests)
        while True:
            request = requests.send(await request.outcome_async(deadline))
