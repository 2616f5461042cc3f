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
from vfio_user.pci.frozen import FrozenConfig, read_config
from vfio_user.session import open as open_device

__all__ = ["MapReading", "driver_of", "live_registers", "read_registers"]

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


def driver_of(function: PciFunction, driver: str | None = None) -> type[Driver]:
    """Give the driver class that has declared a device's registers.

    Args:
        function: which device.
        driver: the class, as ``"my_package:MyDriver"``; by default this package's own for the device.

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
    return found


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
        driver: see `driver_of`.

    Raises:
        UnsupportedError: there is no register map.
        VfioOSError: it can't be opened; or, with ``live``, the kernel does not allow it, and says why.
        MemoryDisabledError: with ``live``: its memory is switched off now, or it sleeps.
    """
    function = sysfs.pci_function(address)
    declared = driver_of(function, driver)
    if live:
        with live_registers(function, declared) as laid:
            return tuple(_reading(each, bar) for each, bar in laid)
    with open_device(function.address, allow_noiommu=True) as pci:
        places = declared.find_registers(pci.config)
        return tuple(_reading(each(pci.bar(bar), base), bar, everything) for each, bar, base in places)


@contextmanager
def live_registers(function: PciFunction, driver: type[Driver]) -> Iterator[list[tuple[RegisterMap, int]]]:
    """Map BARs through sysfs, read-only, and lay register maps over them, for a ``with`` block; give maps and BARs.

    Nobody else is disturbed, as long as only registers are read whose reading changes nothing. Needs root.

    Raises:
        VfioOSError: EINVAL or EPERM where the kernel does not allow it; the message says what would.
        MemoryDisabledError: its memory is switched off now, or it sleeps.
    """
    places = list(driver.find_registers(_require_awake(function)))
    with ExitStack() as stack:
        bars = {bar: stack.enter_context(_mapped(function, bar)) for bar in {bar for _, bar, _ in places}}
        yield [(each(bars[bar], base), bar) for each, bar, base in places]


def _require_awake(function: PciFunction) -> FrozenConfig:
    """Refuse a device that does not answer in memory space now; give its configuration space.

    Raises:
        MemoryDisabledError: decoding is off, or it sleeps.
    """
    state = (function.path / "power/runtime_status").read_text().strip()
    if state != "active":
        raise MemoryDisabledError(f"{function.name} sleeps ({state}); its registers are not there until it is used")
    config = read_config(function.path)
    if config is None or not config.command & Command.MEMORY:
        raise MemoryDisabledError(f"memory decoding of {function.name} is off; its registers are not there")
    return config


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
