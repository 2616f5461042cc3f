"""Drivers: what a device means. `vfio_user.drivers.base.Driver` is their base."""

from __future__ import annotations

from vfio_user.drivers.base import Driver, DriverBase

__all__ = ["Driver", "DriverBase"]
