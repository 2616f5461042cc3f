"""The face of a mediated device that looks like a PCI function."""

from __future__ import annotations

from vfio_user._uapi import lib
from vfio_user.device.base import VfioDevice
from vfio_user.device.region import Region
from vfio_user.errors import UnsupportedError
from vfio_user.pci.config import ConfigSpace
from vfio_user.pci.device import PciIrqs

__all__ = ["PciFace"]


class PciFace:
    """Regions and interrupts of a device by the names that they have on PCI.

    There is no slot, no reset domain and no memory decoding behind it: what a write to the configuration space does
    is up to the driver of the device.

    Lifetime:
        Lives as long as its device.
    Locking:
        Fixed when it is made.
    """

    def __init__(self, vdev: VfioDevice) -> None:
        self._vdev = vdev
        self.bars: tuple[Region | None, ...] = vdev.regions[: lib.VFIO_PCI_ROM_REGION_INDEX]
        """The six BARs; `None` where it has none."""
        self.config = ConfigSpace(vdev.region(lib.VFIO_PCI_CONFIG_REGION_INDEX))
        """Its configuration space."""
        self.irqs = PciIrqs(vdev)
        """Its interrupts."""

    def bar(self, number: int) -> Region:
        """Give a BAR.

        Raises:
            UnsupportedError: the device has no such BAR; the message lists those that it has.
        """
        region = self.bars[number] if 0 <= number < len(self.bars) else None
        if region is None:
            have = ", ".join(str(n) for n, each in enumerate(self.bars) if each is not None) or "none"
            raise UnsupportedError(f"{self._vdev.name} has no BAR {number}; it has: {have}")
        return region

    def __repr__(self) -> str:
        return f"<PciFace of {self._vdev.name}>"
