"""Platform and AMBA devices: regions and interrupts by their index, in the order of the firmware's description."""

from __future__ import annotations

import dataclasses

from vfio_user.device.base import VfioDevice
from vfio_user.device.bus import BusDevice
from vfio_user.device.embed import Embedded
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.errors import UnsupportedError
from vfio_user.kernel.uapi import DeviceFlags
from vfio_user.platform.sysfs import AmbaNode, PlatformNode

__all__ = ["AMBA_OPS", "PLATFORM_OPS", "AmbaDevice", "PlatformDevice"]

_NO_RESET = "{}: the kernel has no reset function for this kind of device (drivers/vfio/platform/reset)"


def _reset(vdev: VfioDevice) -> None:
    # The core's message names what PCI has, and these devices have not.
    if not vdev.info.flags & DeviceFlags.RESET:
        raise UnsupportedError(_NO_RESET.format(vdev.name))
    CORE_OPS.reset(vdev)


PLATFORM_OPS: DeviceOps = dataclasses.replace(CORE_OPS, name="vfio-platform", reset=_reset)
"""The ops table of platform devices; a variant driver replaces single entries of it."""
AMBA_OPS: DeviceOps = dataclasses.replace(PLATFORM_OPS, name="vfio-amba")
"""The ops table of AMBA devices; a variant driver replaces single entries of it."""


class PlatformDevice(BusDevice[PlatformNode]):
    """A platform device opened through VFIO; `vfio_user.open_platform` makes one.

    Regions and interrupts are in the order of the firmware's description.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing.
    Locking:
        All methods may be called from any thread.
    """

    vdev = Embedded["PlatformDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, PlatformDevice.vdev)`` leads back."""


class AmbaDevice(BusDevice[AmbaNode]):
    """An AMBA device opened through VFIO; `vfio_user.open_amba` makes one.

    Regions and interrupts are in the order of the firmware's description.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing.
    Locking:
        All methods may be called from any thread.
    """

    vdev = Embedded["AmbaDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, AmbaDevice.vdev)`` leads back."""
