"""Devices of the machine's own buses, which no slot holds: platform and AMBA devices."""

from __future__ import annotations

from vfio_user.platform.device import AMBA_OPS, PLATFORM_OPS, AmbaDevice, PlatformDevice
from vfio_user.platform.sysfs import AmbaNode, PlatformNode

__all__ = ["AMBA_OPS", "PLATFORM_OPS", "AmbaDevice", "AmbaNode", "PlatformDevice", "PlatformNode"]
