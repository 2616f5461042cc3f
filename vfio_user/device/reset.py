"""Resetting one device by itself, where its bus has nothing of its own to put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vfio_user.device.memory import locked
from vfio_user.errors import NotRestoredError
from vfio_user.memory import ZapReason

if TYPE_CHECKING:
    from vfio_user.device.base import VfioDevice

__all__ = ["LOCK_TIMEOUT", "ResetListener", "reset_alone"]

LOCK_TIMEOUT = 5.0
"""Seconds for the locks of a reset, unless it is told otherwise."""


class ResetListener(Protocol):
    """Who is told of a device's resets: its driver."""

    def reset_prepare(self) -> None:
        """Stop work: a reset is about to happen. What it raises is told after the reset, which it can't keep off."""

    def reset_done(self) -> None:
        """Start again: the reset is over, or was called off."""


def reset_alone(vdev: VfioDevice, listener: ResetListener | None, lock_timeout: float = LOCK_TIMEOUT) -> None:
    """Reset a device with its memory taken away meanwhile: ``VFIO_DEVICE_RESET``.

    The memory is back at the same addresses afterwards, for peers too; interrupts are left as they are.

    Args:
        vdev: the device.
        listener: who is told, before and after.
        lock_timeout: seconds for the memory lock.

    Raises:
        UnsupportedError: it can't be reset.
        MemoryLockBusyError: a reader did not leave in time; names device and thread. Nothing was reset.
        LockOrderError: this thread is inside of a read section.
        NotRestoredError: it was done, but the listener or a peer's mapping did not come back.
        VfioOSError: the kernel refused.
    """
    troubles: list[Exception] = []

    def tell(hook: Callable[[], None]) -> None:
        try:
            hook()
        except Exception as error:
            troubles.append(error)

    with vdev.user() as fd:
        try:
            if listener is not None:
                tell(listener.reset_prepare)
            with locked((vdev.memory,), lock_timeout):
                vdev.memory.take_away(ZapReason.RESET)
                try:
                    vdev.ops.reset(vdev)
                finally:
                    troubles.extend(vdev.memory.give_back(fd))
        except BaseException as error:
            if listener is not None:
                tell(listener.reset_done)
            for trouble in troubles:
                error.add_note(f"also: {type(trouble).__name__}: {trouble}")
            raise
        if listener is not None:
            tell(listener.reset_done)
    if troubles:
        raise NotRestoredError(f"{vdev.name} was reset, but not all came back after it", troubles)
