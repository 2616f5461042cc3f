"""Give a device back when the kernel asks for it."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from vfio_user.drivers.base import DriverBase
from vfio_user.errors import ClosedError, DeadlineError, VfioError
from vfio_user.pci.device import PciDevice

__all__ = ["ReleaseOnRequest"]

_LOOK = 3600.0
_LEAVE_TIMEOUT = 30.0


class ReleaseOnRequest:
    """Stop the driver and close the device when the kernel asks for it back (REQ): it is unplugged, or unbound.

    Without this, whoever wants the device waits in the kernel for as long as it is open, and can't be interrupted.
    Who still uses it is told by `ClosedError`; raw views read all-ones::

        with vfio_user.open(address) as pci, Edu(pci) as edu, ReleaseOnRequest(pci) as release:
            while not release.released.is_set():
                edu.factorial(5)

    The kernel asks again every 10 seconds, and so does this: what did not work at first (calls that are in the device)
    is tried again. The hooks of the driver must read and write no sysfs file of the device: the kernel has it locked.

    Lifetime:
        `close()`, or the ``with`` block, ends it, and leaves a device open that nobody has asked for.
    Locking:
        Works in a thread of its own, without any lock of ours held.
    """

    def __init__(self, pci: PciDevice) -> None:
        """Enable REQ, and wait for it in the background.

        Raises:
            UnsupportedError: the device has no REQ interrupt.
            BusyError: somebody waits for REQ already.
        """
        self._pci = pci
        self.released = threading.Event()
        """Set when the device was given back."""
        self.errors: list[Exception] = []
        """What went wrong meanwhile, in the driver's `remove` or when closing."""
        (self._vector,) = pci.irqs.req.enable(1)
        self._thread = threading.Thread(target=self._run, name=f"release of {pci.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for requests no more; closing twice does nothing.

        Raises:
            DeadlineError: the device is being given back, and the driver does not come to its end.
        """
        if not self._pci.closed and not self.released.is_set():
            with suppress(ClosedError):  # it was given back just now
                self._pci.irqs.req.disable()
        self._thread.join(_LEAVE_TIMEOUT)
        if self._thread.is_alive():
            raise DeadlineError(f"{self._pci.name} is still being given back after {_LEAVE_TIMEOUT:g} s")

    def _run(self) -> None:
        while not self.released.is_set():
            try:
                self._vector.wait(_LOOK)
            except DeadlineError:
                continue
            except ClosedError:
                return
            self._release()

    def _release(self) -> None:
        driver = self._pci.driver
        if isinstance(driver, DriverBase):
            try:
                driver.stop()
            except Exception as error:
                self.errors.append(error)  # a driver that fails is no reason to keep the device
        try:
            self._pci.close()
        except VfioError as error:
            self.errors.append(error)
        if self._pci.closed:
            self.released.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ReleaseOnRequest {self._pci.name}{' released' if self.released.is_set() else ''}>"
