"""A request to a block device that is in flight, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.drivers.virtio.errors import (
    VirtioAbortedError,
    VirtioDeadlineError,
    VirtioError,
    VirtioStatusError,
)
from vfio_user.drivers.waiting import deadline_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from vfio_user.drivers.virtio.service import QueueService

__all__ = ["Request", "status_name"]

_OK = 0
_STATUS_NAMES = {0: "OK", 1: "IOERR", 2: "UNSUPP"}  # VIRTIO_BLK_S_…, 5.2.6


def status_name(status: int) -> str:
    """Name a status of a block request (virtio 1.2, 5.2.6), without its VIRTIO_BLK_S_."""
    return _STATUS_NAMES.get(status, f"status {status}")


class Request:
    """A request that was submitted: settled by its queue, exactly once. Wait with `wait`, or with ``await``.

    Lifetime:
        Holds the memory of its data until it is done. Dropping the handle does not end the request.
    Locking:
        All methods may be called from any thread.
    """

    __slots__ = ("_data", "_done", "_error", "_service", "_timeout", "name", "slot")

    def __init__(self, service: QueueService[Request], name: str, slot: int, data: object, timeout: float) -> None:
        self._service = service
        self._data = data
        self._timeout = timeout
        self._error: VirtioError | None = None
        self._done = False
        self.name = name
        """What it is: ``"read of 8 sectors at 0"``."""
        self.slot = slot
        """Where its header and status are."""

    def done(self) -> bool:
        """Tell whether it has ended, one way or another; never looks at the device."""
        return self._done

    def exception(self) -> VirtioError | None:
        """Give the error of a request that is done; `None` when it succeeded.

        Raises:
            VirtioError: it is still in flight.
        """
        if not self._done:
            raise VirtioError(f"the {self.name} is still in flight: wait() for it first")
        return self._error

    def wait(self, timeout: float | None = None) -> None:
        """Block until it is done.

        Args:
            timeout: seconds; by default the device's.

        Raises:
            VirtioStatusError: the device reported an error.
            VirtioAbortedError: a reset or removal ended it.
            VirtioDeadlineError: not done in time. It is still in flight then, and its memory in use.
            VirtioNeedsResetError, VirtioRingError, DeviceGoneError: it won't be done any more.
        """
        self.wait_until(deadline_of(self._timeout if timeout is None else timeout))

    def wait_until(self, deadline: float) -> None:
        """Block until it is done, or a time of the monotonic clock; raises as `wait`."""
        if not self._done and not self._service.wait(self.done, deadline):
            raise self._late()
        self._raise()

    def __await__(self) -> Generator[object, None, None]:
        yield from self.wait_until_async(deadline_of(self._timeout)).__await__()

    def outcome(self, deadline: float) -> VirtioError | None:
        """Block as `wait_until`, and give the error instead of raising it."""
        try:
            self.wait_until(deadline)
        except VirtioError as error:
            return error
        return None

    async def outcome_async(self, deadline: float) -> VirtioError | None:
        """Let the event loop run; otherwise as `outcome`."""
        try:
            await self.wait_until_async(deadline)
        except VirtioError as error:
            return error
        return None

    async def wait_until_async(self, deadline: float) -> None:
        """Let the event loop run until it is done, or a time of the monotonic clock; raises as `wait`."""
        if not self._done and not await self._service.wait_async(self.done, deadline):
            raise self._late()
        self._raise()

    def _late(self) -> VirtioDeadlineError:
        return VirtioDeadlineError(f"the {self.name} is not done in time, and still in flight")

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def settle(self, status: int) -> None:
        """Note what the device wrote; its queue calls this."""
        if status != _OK:
            self._error = VirtioStatusError(f"the {self.name} failed: {status_name(status)}", status)
        self._end()

    def abort(self) -> None:
        """Note that a reset or removal ended it; its queue calls this."""
        self._error = VirtioAbortedError(f"the {self.name} was ended by a reset or removal")
        self._end()

    def _end(self) -> None:
        self._data = None
        self._done = True

    def __repr__(self) -> str:
        state = "in flight" if not self._done else self._error or "done"
        return f"<Request {self.name}: {state}>"
