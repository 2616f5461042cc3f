"""The life of a driver whose device runs, is reset, and runs again with the same memory and vectors."""

from __future__ import annotations

import abc
import contextlib
import enum
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from vfio_user.drivers.base import Driver
from vfio_user.errors import ArgumentError, VfioError, ZappedError

if TYPE_CHECKING:
    from vfio_user.pci.device import PciDevice

__all__ = ["DriverState", "ResettableDriver"]


class DriverState(enum.Enum):
    """What a driver's device is doing."""

    STOPPED = "stopped"
    """Not probed yet, or removed."""
    RUNNING = "running"
    """It can be used."""
    RESETTING = "resetting"
    """Between `reset_prepare` and `reset_done`."""
    FAILED = "failed"
    """It did not come back from a reset; another one may help."""


_ADVICE = {
    DriverState.STOPPED: "use it in a with block, or start() it",
    DriverState.RESETTING: "wait until the reset is over; if it failed, reset() again",
    DriverState.FAILED: "reset() it",
}


class ResettableDriver(Driver, abc.ABC):
    """Brings a device up, ends what is in flight for a reset, and brings it up again.

    A subclass allocates in `_prepare`, switches its device on in `_switch_on` from whatever state it is in, stops it in
    `_quiesce`, and accounts for what was in flight in `_forget`.

    Lifetime:
        See `Driver`. Bus mastering is on from probing to removal.
    Locking:
        One lock serialises probing, removal and resets.
    """

    _not_running: ClassVar[type[VfioError]] = VfioError
    """What is raised when the device is used while it does not run."""

    def __init__(self, pci: PciDevice, *, timeout: float = 5.0) -> None:
        """Take a device; nothing is touched before `start`, or the ``with`` block.

        Args:
            pci: the device.
            timeout: default deadline of what is waited for, seconds.

        Raises:
            UnsupportedError: it is another kind of device.
            ArgumentError: the timeout is not positive.
        """
        super().__init__(pci)
        if timeout <= 0:
            raise ArgumentError(f"timeout {timeout} is not positive; give seconds")
        self.name = f"{type(self).__name__} {pci.name}"
        """Its name, for messages."""
        self.timeout = timeout
        """Default deadline, seconds."""
        self._life = threading.RLock()
        self._state = DriverState.STOPPED

    # -- for subclasses

    @abc.abstractmethod
    def _prepare(self, stack: contextlib.ExitStack) -> None:
        """Allocate what lives until removal; ``stack`` gives it back, after `_stop_for_good`, which goes there too."""

    @abc.abstractmethod
    def _switch_on(self) -> None:
        """Reset the device, tell it of what was allocated, and let it run; it is bus master."""

    @abc.abstractmethod
    def _quiesce(self) -> None:
        """Stop the device: no DMA and no interrupts afterwards."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Account for what was in flight, and wake who waits for it: the device does not reach memory any more."""

    # -- hooks of Driver

    def probe(self) -> None:
        """Bring the device up.

        Raises:
            UnsupportedError: it lacks something.
            BoundsError: it has too few MSI-X vectors.
            DeadlineError: it does not answer.
            DeviceGoneError: it reads as all-ones.
        """
        with self._life, contextlib.ExitStack() as stack:
            self._prepare(stack)
            self._run()
            self._undo = stack.pop_all()

    def remove(self) -> None:
        """Stop the device; what is in flight ends with an error, or is counted as aborted."""
        with self._life, self._undo:
            self._state = DriverState.STOPPED

    def reset_prepare(self) -> None:
        """Stop the device for a reset; what is in flight ends with an error, or is counted as aborted."""
        with self._life:
            if self._state is not DriverState.STOPPED:
                self._state = DriverState.RESETTING
                self._stop()

    def reset_done(self) -> None:
        """Bring the device up again after a reset, with the same memory and vectors."""
        with self._life:
            if self._state is DriverState.RESETTING:
                self._state = DriverState.FAILED
                self._run()

    # -- what it is

    @property
    def state(self) -> DriverState:
        """What the device is doing."""
        return self._state

    def reset(self) -> None:
        """Start the device over by its own means; memory and vectors stay valid.

        Raises:
            VfioError: it is not started, or does not come back: it is `DriverState.FAILED` then.
        """
        with self._life:
            if self._state is DriverState.STOPPED:
                self._require_running()
            self.reset_prepare()
            self.reset_done()

    # -- inside

    def _require_running(self) -> None:
        if self._state is not DriverState.RUNNING:
            raise self._not_running(f"{self.name} is {self._state.value}; {_ADVICE[self._state]}")

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Use registers without the lock: what a reset in between takes away is told as that."""
        self._require_running()
        try:
            yield
        except ZappedError:
            self._require_running()
            raise

    def _run(self) -> None:
        self.pci.set_master(True)
        self._switch_on()
        self._state = DriverState.RUNNING

    def _stop(self, *, for_good: bool = False) -> None:
        try:
            self._quiesce()
        except VfioError:
            # Gone, closed or taken away; whatever it still does, it can't reach memory without bus mastering.
            for_good = True
        if for_good:
            with contextlib.suppress(VfioError):
                self.pci.set_master(False)
        self._forget()

    def _stop_for_good(self) -> None:
        self._stop(for_good=True)
