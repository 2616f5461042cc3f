"""The registers of a device by name, read through VFIO, or beside the process that drives it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vfio_user.addresses import PciAddress
from vfio_user.device.regmap import Reading, RegisterMap
from vfio_user.drivers import Driver
from vfio_user.drivers.known import driver_for, load_driver
from vfio_user.errors import MemoryDisabledError, UnsupportedError, VfioOSError
from vfio_user.kernel import sysfs
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import PciFunction
from vfio_user.memory import Mmio, Window
from vfio_user.pci import Command
from vfio_user.pci.frozen import read_config
from vfio_user.session import open as open_device

__all__ = ["MapReading", "live_registers", "read_registers", "register_maps"]

_STRICT = (
    "This kernel keeps device memory that a driver uses to itself (CONFIG_IO_STRICT_DEVMEM): boot with iomem=relaxed "
    "for a kernel that allows it, or let the driver's process run vfio_user.Monitor"
)
_LOCKED = "The kernel is locked down (Secure Boot): let the driver's process run vfio_user.Monitor"


@dataclass(frozen=True, slots=True)
class MapReading:
    """What the registers of one map read as."""

    name: str
    """Name of the map."""
    bar: int
    """The BAR that it is in."""
    readings: tuple[Reading, ...]
    """Its registers, ordered by offset."""


def register_maps(function: PciFunction, driver: str | None = None) -> tuple[type[RegisterMap], ...]:
    """Give the register maps of a device.

    Args:
        function: which one.
        driver: a driver class that has them, ``"my_package:MyDriver"``; by default this package's own for the device.

    Raises:
        UnsupportedError: nobody has declared any.
        ArgumentError: there is no such driver class.
    """
    found: type[Driver] | None
    if driver is not None:
        found = load_driver(driver)
    else:
        found = driver_for(function.vendor, function.device, function.class_code)
    if found is None or not found.register_maps:
        raise UnsupportedError(
            f"no register map for {function.name} ({function.vendor:04x}:{function.device:04x}): name a driver class "
            "that has one, as MODULE:CLASS"
        )
    return found.register_maps


def read_registers(
    address: str | PciAddress, *, live: bool = False, everything: bool = False, driver: str | None = None
) -> tuple[MapReading, ...]:
    """Read the registers of a device, those whose reading changes nothing.

    By default it is opened through VFIO, which nobody else may have done; the kernel may reset a device when it is
    opened and when it is closed.

    Args:
        address: which one.
        live: read them through sysfs instead, beside the process that drives it.
        everything: also those whose reading changes the device; not with ``live``.
        driver: see `register_maps`.

    Raises:
        UnsupportedError: there is no register map.
        VfioOSError: it can't be opened; or, with ``live``, the kernel does not allow it, and says why.
        MemoryDisabledError: with ``live``: its memory is switched off now, or it sleeps.
    """
    function = sysfs.pci_function(address)
    maps = register_maps(function, driver)
    if live:
        with live_registers(function, maps) as laid:
            return tuple(_reading(each, each.bar) for each in laid)
    with open_device(function.address, allow_noiommu=True) as pci:
        return tuple(_reading(each(pci.bar(each.bar)), each.bar, everything) for each in maps)


@contextmanager
def live_registers(function: PciFunction, maps: tuple[type[RegisterMap], ...]) -> Iterator[tuple[RegisterMap, ...]]:
    """Map BARs through sysfs, read-only, and lay register maps over them, for a ``with`` block.

    Nobody else is disturbed, as long as only registers are read whose reading changes nothing. Needs root.

    Raises:
        VfioOSError: EINVAL or EPERM where the kernel does not allow it; the message says what would.
        MemoryDisabledError: its memory is switched off now, or it sleeps.
    """
    _require_awake(function)
    with ExitStack() as stack:
        bars = {number: stack.enter_context(_mapped(function, number)) for number in {each.bar for each in maps}}
        yield tuple(each(bars[each.bar]) for each in maps)


def _require_awake(function: PciFunction) -> None:
    """Refuse a device that does not answer in memory space now.

    Raises:
        MemoryDisabledError: decoding is off, or it sleeps.
    """
    state = (function.path / "power/runtime_status").read_text().strip()
    if state != "active":
        raise MemoryDisabledError(f"{function.name} sleeps ({state}); its registers are not there until it is used")
    config = read_config(function.path)
    if config is None or not config.command & Command.MEMORY:
        raise MemoryDisabledError(f"memory decoding of {function.name} is off; its registers are not there")


@contextmanager
def _mapped(function: PciFunction, bar: int) -> Iterator[Mmio]:
    path = function.path / f"resource{bar}"
    size = os.stat(path).st_size if path.exists() else 0
    with OwnedFd.open(str(path), os.O_RDONLY, hint="Reading registers beside a driver needs root") as fd:
        length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        window = Window(length, name=f"{function.name} BAR {bar}")
        try:
            try:
                window.map(0, length, fd.fileno(), 0, mmap.PROT_READ)
            except VfioOSError as error:
                hint = {errno.EINVAL: _STRICT, errno.EPERM: _LOCKED}.get(error.errno or 0, "")
                raise VfioOSError(error.errno or 0, f"map {path}", hint) from error
            yield Mmio(window, 0, size, [(0, size)], writable=False)
        finally:
            window.close()


def _reading(laid: RegisterMap, bar: int, everything: bool = False) -> MapReading:
    return MapReading(type(laid).__name__, bar, laid.snapshot(everything=everything))
