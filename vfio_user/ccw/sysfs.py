"""Subchannels and ccw devices as sysfs shows them.

Source: ``Documentation/arch/s390/driver-model.rst``, ``vfio-ccw.rst`` beside it.
"""

from __future__ import annotations

import os
import re

from vfio_user.errors import ArgumentError
from vfio_user.kernel import sysfs
from vfio_user.kernel.busnode import BusNode
from vfio_user.mdev.sysfs import Mdev, MdevParent

__all__ = ["Subchannel", "subchannel", "subchannel_of", "subchannels"]

_NAME = re.compile(r"[0-9a-f]{1,2}\.[0-3]\.[0-9a-f]{4}")
_TYPE = "vfio_ccw-io"


class Subchannel(BusNode):
    """One subchannel, ``"0.0.0001"``: channel subsystem, set, number. One ccw device is driven through it.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    on_bus = "css"

    @property
    def ccw_device(self) -> str | None:
        """Name of its ccw device, ``"0.0.0005"``; `None` while the subchannel belongs to VFIO, or has none."""
        try:
            names = sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except OSError:
            return None
        return names[0] if names else None

    @property
    def mdevs(self) -> tuple[Mdev, ...]:
        """The mediated device that was made of it, if any."""
        return MdevParent(self.path.resolve()).mdevs

    def create(self) -> Mdev:
        """Make the mediated device that `vfio_user.open_ccw` opens; a subchannel has room for one.

        Bind the subchannel to ``vfio_ccw`` before; `Mdev.remove` is the opposite.

        Raises:
            ArgumentError: it is not bound to ``vfio_ccw``.
            BusyError: it has one already.
            VfioOSError: the kernel refused.
        """
        if self.driver != "vfio_ccw":
            raise ArgumentError(
                f"subchannel {self.name} is not bound to vfio_ccw (driver: {self.driver or 'none'}). Bind it for the "
                "length of a block: with vfio_user.binding.lent(subchannel)"
            )
        return MdevParent(self.path.resolve()).type(_TYPE).create()


def subchannel(name: str) -> Subchannel:
    """Give one subchannel by its own name, which may well be that of another subchannel's ccw device.

    Raises:
        ArgumentError: it is no name, or the machine has no such subchannel.
    """
    return Subchannel.find(_checked(name))


def subchannel_of(ccw_device: str) -> Subchannel:
    """Give the subchannel of a ccw device, by the name of that, while a driver of the kernel has it.

    Raises:
        ArgumentError: it is no name, or the machine has no such ccw device.
    """
    device = sysfs.SYSFS / "bus/ccw/devices" / _checked(ccw_device)
    if not device.is_dir():
        raise ArgumentError(f"there is no ccw device {ccw_device} on this machine; lscss lists them")
    return Subchannel(device.resolve().parent.name)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"{name!r} is not the name of a subchannel or ccw device, such as 0.0.0005")
    return name


def subchannels() -> tuple[Subchannel, ...]:
    """Give all subchannels of the machine, ordered by name."""
    return tuple(each for each in Subchannel.all() if _NAME.fullmatch(each.identity))
