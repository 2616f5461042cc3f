"""Low power: the kernel may put a function to sleep while nobody uses it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user.device.events import EventKind
from vfio_user.device.memory import locked
from vfio_user.device.vector import IrqVector
from vfio_user.errors import NotRestoredError
from vfio_user.kernel.uapi import DeviceFeature
from vfio_user.memory import ZapReason
from vfio_user.pci.guard import TIMEOUT

if TYPE_CHECKING:
    from vfio_user.pci.device import PciDevice

__all__ = ["LowPower"]


class LowPower:
    """Let the kernel put a device to sleep, and wake it up: ``pci.low_power``.

    While it may sleep its memory is away: accessors raise `MemoryDisabledError`, views read all-ones, peers meet a
    fault. Everything that goes through the device's file, such as configuration space, still works: the kernel wakes
    the device for it. Interrupts and DMA are the driver's to stop first: a sleeping device has none.

    ::

        with pci.low_power:
            time.sleep(60)

    Source: ``vfio_pci_core_pm_entry()`` of ``drivers/vfio/pci/vfio_pci_core.c``.

    Lifetime:
        Lives as long as its device; closing the device ends low power.
    Locking:
        Each method takes the configuration lock and then the memory lock for writing.
    """

    def __init__(self, pci: PciDevice) -> None:
        self._pci = pci
        self._wakeup: IrqVector | None = None

    @property
    def active(self) -> bool:
        """Tell whether it may sleep now, as far as this process knows; after a wake-up it does until `exit`."""
        return self._pci.guard.low_power

    def enter(self, *, timeout: float = TIMEOUT) -> None:
        """Let it sleep until `exit`: ``LOW_POWER_ENTRY``.

        Args:
            timeout: seconds to wait for readers of its memory.

        Raises:
            UnsupportedError: the kernel can't (before 6.1).
            VfioIoctlError: EINVAL when it may sleep already.
            MemoryLockBusyError: a reader did not leave; nothing has changed.
        """
        self._enter(None, timeout)

    def enter_with_wakeup(self, *, timeout: float = TIMEOUT) -> IrqVector:
        """Let it sleep until something wakes it: ``LOW_POWER_ENTRY_WITH_WAKEUP``.

        That is the device itself (PME), or any access through its file. The memory comes back by `exit`.

        Returns:
            What can be waited for: an eventfd that tells of the wake-up. It is closed by `exit`, or with the device.
            While ``pci.events`` are armed, they tell of it instead.

        Raises:
            As `enter` does.
        """
        wakeup = IrqVector(0, f"{self._pci.name} wake-up")
        try:
            self._enter(wakeup, timeout)
        except BaseException:
            wakeup._close()
            raise
        self._wakeup = wakeup
        self._pci.events._watch(EventKind.WAKE, wakeup)
        return wakeup

    def exit(self, *, timeout: float = TIMEOUT) -> None:
        """Wake it up and bring its memory back; does nothing when it may not sleep: ``LOW_POWER_EXIT``.

        Raises:
            NotRestoredError: the memory is back, but not for all of its peers.
            VfioOSError: the memory can't be mapped; it stays away.
        """
        pci, memory = self._pci, self._pci.vdev.memory
        if not self.active:
            return
        with pci.vdev.user() as fd, pci.guard.alone(timeout), locked((memory,), timeout):
            pci.vdev.features.set(DeviceFeature.LOW_POWER_EXIT)
            pci.guard.low_power = False
            failures = memory.give_back(fd) if pci.guard.memory_on() else []
        self._end()
        if failures:
            raise NotRestoredError(f"the memory of {pci.name} is back, but not for all of its peers", failures)

    def _end(self) -> None:
        """Close the eventfd: the device is awake, or closed."""
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            wakeup._close()

    def _enter(self, wakeup: IrqVector | None, timeout: float) -> None:
        pci, memory = self._pci, self._pci.vdev.memory
        with pci.vdev.user() as fd, pci.guard.alone(timeout), locked((memory,), timeout):
            memory.take_away(ZapReason.DISABLED)
            try:
                if wakeup is None:
                    pci.vdev.features.set(DeviceFeature.LOW_POWER_ENTRY)
                else:
                    pci.vdev.features.set(
                        DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP,
                        "struct vfio_device_low_power_entry_with_wakeup",
                        wakeup_eventfd=wakeup.fileno(),
                    )
            except BaseException:
                if pci.guard.memory_on():
                    memory.give_back(fd)
                raise
            pci.guard.low_power = True

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.exit()

    def __repr__(self) -> str:
        return f"<LowPower {self._pci.name}{' active' if self.active else ''}>"
