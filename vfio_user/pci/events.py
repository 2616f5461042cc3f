"""What PCI devices tell of, and what is safe to do about it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vfio_user.device.events import DeviceEvent, DeviceEvents, EventKind
from vfio_user.errors import BusyError, ClosedError, DeadlineError, VfioError
from vfio_user.pci.member import Member

if TYPE_CHECKING:
    import logging

    from vfio_user.pci.device import PciDevice

__all__ = ["device_events"]

_TRY = 1.0
"""Seconds of one attempt to close a device that somebody is in."""
_PATIENCE = 60.0
"""Seconds until a device that somebody does not leave is given up; the kernel asks again."""


def device_events(pci: PciDevice) -> DeviceEvents:
    """Make the stream of events of a device, with what is safe for each kind."""
    sources = {EventKind.REQUEST: pci.irqs.req, EventKind.ERROR: pci.irqs.err}
    handlers = {
        EventKind.REQUEST: lambda event: _release(pci, "the kernel asks for it back"),
        EventKind.GONE: lambda event: _release(pci, "it does not answer any more"),
        EventKind.ERROR: lambda event: _contain(pci, event),
        EventKind.WAKE: lambda event: pci.low_power.exit(),
    }
    return DeviceEvents(pci.name, sources, handlers, lambda: _answers(pci))


def _log() -> logging.Logger:
    import logging

    return logging.getLogger("vfio_user.events")


def _answers(pci: PciDevice) -> bool:
    """Tell whether configuration space can be read: through the device's file, as who unbinds it locks it in sysfs."""
    return pci.closed or Member(pci).find_gone() is None


def _release(pci: PciDevice, why: str) -> None:
    """Stop the driver and close the device, without a look at sysfs.

    Raises:
        BusyError, DeadlineError: somebody does not leave it.
    """
    _log().warning("%s is released: %s", pci.name, why)
    try:
        stop = getattr(pci.driver, "stop", None)  # of `Driver`; who only listens to resets has none
        if stop is not None:
            stop()
    except Exception as error:
        # It has to go whatever its driver says: closing it stops interrupts and DMA too.
        _log().warning("%s: its driver could not quiet it: %s", pci.name, error)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            pci.close(_TRY)
            return
        except (BusyError, DeadlineError) as error:
            if time.monotonic() > deadline:
                raise
            _log().warning("%s is not released yet: %s", pci.name, error)


def _contain(pci: PciDevice, event: DeviceEvent) -> None:
    """Log an error with what the device says of it, and keep the device from writing to memory."""
    from vfio_user.pci.decode import decode

    try:
        found = [str(each) for each in decode(pci.config) if each.name == "aer"]
        _log().error(
            "%s reported an uncorrectable error (%d times): %s; bus mastering is off now, a reset brings it back",
            pci.name,
            event.count,
            found[0] if found and found[0] else "the kernel has cleared what it said of it",
        )
        pci.set_master(False)
    except ClosedError:
        pass
    except VfioError as error:
        _log().warning("%s could not be quieted: %s", pci.name, error)
