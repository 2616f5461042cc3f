"""Mediated devices: parents and their types, instances that are made and removed, and the device that is opened.

::

    kind = mdev_parent("mtty").type("mtty-2")
    instance = kind.create()
    with vfio_user.open_mdev(instance) as device:
        ...
    instance.remove()
"""

from __future__ import annotations

from vfio_user.mdev.device import MDEV_OPS, MdevDevice
from vfio_user.mdev.pci import PciFace
from vfio_user.mdev.sysfs import Mdev, MdevParent, MdevType, mdev, mdev_parent, mdev_parents, mdevs

__all__ = [
    "MDEV_OPS",
    "Mdev",
    "MdevDevice",
    "MdevParent",
    "MdevType",
    "PciFace",
    "mdev",
    "mdev_parent",
    "mdev_parents",
    "mdevs",
]
