"""Drivers: what a device means. `Driver` is their base, `RegisterMap` declares their registers."""

from __future__ import annotations

from vfio_user.device.regmap import BoundRegister, Reading, Register, RegisterMap
from vfio_user.device.regvalue import Access, Field, RegisterValue
from vfio_user.drivers.base import Driver, DriverBase
from vfio_user.drivers.release import ReleaseOnRequest

__all__ = [
    "Access",
    "BoundRegister",
    "Driver",
    "DriverBase",
    "Field",
    "Reading",
    "Register",
    "RegisterMap",
    "RegisterValue",
    "ReleaseOnRequest",
]
