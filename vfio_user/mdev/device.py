"""Mediated devices."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Sequence
from functools import cached_property
from uuid import UUID

from vfio_user.device.base import VfioDevice
from vfio_user.device.bus import BusDevice
from vfio_user.device.display import query_plane
from vfio_user.device.embed import Embedded
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.errors import MalformedReplyError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.ioctl import ioctl, requests
from vfio_user.kernel.uapi import DeviceFlags, GfxPlaneType
from vfio_user.mdev.pci import PciFace
from vfio_user.mdev.sysfs import Mdev
from vfio_user.pci.device import PCI_OPS

__all__ = ["MDEV_OPS", "MdevDevice"]

_LAST_INDEX = 0xFFFF


def _irq_label(vdev: VfioDevice, index: int) -> str:
    # The same names as on the bus that the device pretends to sit on.
    return (PCI_OPS if vdev.info.flags & DeviceFlags.PCI else CORE_OPS).irq_label(vdev, index)


def _region_indexes(vdev: VfioDevice) -> Sequence[int]:
    """Add the region of a display: a driver need not count it among the others (the sample mdpy does not)."""
    counted = CORE_OPS.region_indexes(vdev)
    plane = query_plane(vdev.fileno(), vdev.name, GfxPlaneType.REGION)
    if plane is None or plane.region_index in counted:
        return counted
    if plane.region_index > _LAST_INDEX:
        raise MalformedReplyError(f"{vdev.name} shows its display in region {plane.region_index}, which can't be")
    return (*counted, int(plane.region_index))


def _reset(vdev: VfioDevice) -> None:
    # Drivers of mediated devices that can be reset do not all say so by VFIO_DEVICE_FLAGS_RESET: they are asked.
    try:
        ioctl(vdev.fileno(), requests.VFIO_DEVICE_RESET, device=vdev.name)
    except VfioIoctlError as error:
        if error.errno == errno.ENOTTY:
            raise UnsupportedError(f"{vdev.name} can't be reset: its driver has no way to do it") from error
        raise


MDEV_OPS: DeviceOps = dataclasses.replace(
    CORE_OPS, name="mdev", region_indexes=_region_indexes, irq_label=_irq_label, reset=_reset
)
"""The ops table of mediated devices; a variant driver replaces single entries of it."""


class MdevDevice(BusDevice[Mdev]):
    """A mediated device opened through VFIO; `vfio_user.open_mdev` makes one.

    What it looks like is up to the driver that made it: a PCI function mostly, whose parts `pci` names.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing. The instance stays on the machine until
        `Mdev.remove`, which waits for who has it open.
    Locking:
        All methods may be called from any thread.
    """

    vdev = Embedded["MdevDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, MdevDevice.vdev)`` leads back."""

    @property
    def uuid(self) -> UUID:
        """Its UUID."""
        return self.node.uuid

    @cached_property
    def pci(self) -> PciFace:
        """Its BARs, configuration space and interrupts by their names, where it looks like a PCI function.

        Raises:
            UnsupportedError: it looks like something else.
        """
        if not self.vdev.info.flags & DeviceFlags.PCI:
            raise UnsupportedError(f"{self.name} does not look like a PCI function, but like {self.node.device_api}")
        return PciFace(self.vdev)
