"""The drivers of this package, and how to find one: for tools, which import only the one that they need."""

from __future__ import annotations

import importlib

from vfio_user.drivers.base import Driver
from vfio_user.errors import ArgumentError

__all__ = ["driver_for", "load_driver"]

#: Where they are; asked in this order.
_KNOWN = (
    "vfio_user.drivers.edu:Edu",
    "vfio_user.drivers.nvme:NvmeController",
    "vfio_user.drivers.igb:Igb",
    "vfio_user.drivers.virtio:VirtioBlk",
    "vfio_user.drivers.virtio:VirtioNet",
    "vfio_user.drivers.virtio:VirtioRng",
)


def driver_for(vendor: int, device: int, class_code: int) -> type[Driver] | None:
    """Give the driver of this package for a device, by its ids and class; `None` when there is none."""
    for place in _KNOWN:
        driver = load_driver(place)
        if any(each.matches(vendor, device, class_code) for each in driver.match):
            return driver
    return None


def load_driver(place: str) -> type[Driver]:
    """Import a driver class: ``"my_package.my_module:MyDriver"``.

    Raises:
        ArgumentError: there is no such class, or it is no driver.
    """
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise ArgumentError(f"{place!r} is not MODULE:CLASS, such as {_KNOWN[0]}")
    try:
        found: object = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"{place} can't be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Driver)):
        raise ArgumentError(f"{place} is no vfio_user.drivers.Driver")
    return found
