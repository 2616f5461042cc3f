"""Devices of AMD's CDX bus: FPGA functions that a firmware lists.

Nobody has run this on hardware: there is no emulator of the bus. It is written to the kernel's uAPI and source, and
covered by unit tests only.

Source: ``drivers/vfio/cdx/main.c``, ``intr.c`` beside it.
"""

from __future__ import annotations

import dataclasses

from vfio_user.device.base import VfioDevice
from vfio_user.device.bus import BusDevice
from vfio_user.device.embed import Embedded
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.kernel.busnode import BusNode

__all__ = ["CDX_OPS", "CdxDevice", "CdxNode"]


def _irq_label(vdev: VfioDevice, index: int) -> str:
    return "MSI" if index == 0 else CORE_OPS.irq_label(vdev, index)


CDX_OPS: DeviceOps = dataclasses.replace(CORE_OPS, name="vfio-cdx", irq_label=_irq_label)
"""The ops table of CDX devices; a variant driver replaces single entries of it."""


class CdxNode(BusNode):
    """One CDX device as sysfs shows it: ``"cdx-00:01"``.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    on_bus = "cdx"

    @property
    def vendor(self) -> int | None:
        """Vendor id, 16 bits; `None` when it can't be read."""
        return self._hexadecimal("vendor")

    @property
    def device(self) -> int | None:
        """Device id, 16 bits; `None` when it can't be read."""
        return self._hexadecimal("device")

    def _hexadecimal(self, name: str) -> int | None:
        try:
            return int(self.text(name) or "", 16)
        except ValueError:
            return None


class CdxDevice(BusDevice[CdxNode]):
    """A CDX device opened through VFIO; `vfio_user.open_cdx` makes one.

    It has no configuration space: bus mastering is a feature of VFIO. Interrupt 0 is MSI, with one vector or more.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing.
    Locking:
        All methods may be called from any thread.
    """

    vdev = Embedded["CdxDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, CdxDevice.vdev)`` leads back."""

    def set_master(self, enable: bool) -> None:
        """Let the device start transactions, or stop it: ``VFIO_DEVICE_FEATURE_BUS_MASTER``.

        Raises:
            UnsupportedError: the kernel can't.
            VfioIoctlError: it refused.
        """
        self.vdev.features.set_bus_master(enable)
