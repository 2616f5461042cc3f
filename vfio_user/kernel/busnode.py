"""Devices that their bus knows by a plain name, as sysfs shows them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from vfio_user.errors import ArgumentError
from vfio_user.kernel import sysfs

__all__ = ["BusNode"]


@dataclass(frozen=True)
class BusNode(sysfs.SysfsDevice):
    """One device of a bus; a subclass says of which.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    identity: str
    """Its name."""

    on_bus: ClassVar[str]
    """The bus, as ``/sys/bus`` has it."""

    @property
    def path(self) -> Path:
        """Its directory in sysfs."""
        return sysfs.SYSFS / "bus" / self.on_bus / "devices" / self.identity

    @classmethod
    def find(cls, identity: str) -> Self:
        """Give one device of the bus, which must exist.

        Raises:
            ArgumentError: it is no name, or the machine has no such device.
        """
        lists = f"ls /sys/bus/{cls.on_bus}/devices lists them"
        if not identity or "/" in identity or identity in (".", ".."):
            raise ArgumentError(f"{identity!r} is not the name of a device; {lists}")
        found = cls(identity)
        if not found.exists():
            raise ArgumentError(f"there is no {cls.on_bus} device {identity} on this machine; {lists}")
        return found

    @classmethod
    def all(cls) -> tuple[Self, ...]:
        """Give all devices of the bus, ordered by name."""
        try:
            return tuple(map(cls, sorted(os.listdir(sysfs.SYSFS / "bus" / cls.on_bus / "devices"))))
        except OSError:
            return ()
