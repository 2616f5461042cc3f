"""The matrix of adjunct processors as a device: nothing to read or write, two interrupts, a reset."""

from __future__ import annotations

import dataclasses

from vfio_user._uapi import lib
from vfio_user.ap.sysfs import ApMdev
from vfio_user.device.base import VfioDevice
from vfio_user.device.bus import BusDevice
from vfio_user.device.embed import Embedded
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.kernel.uapi import ApIrq

__all__ = ["AP_OPS", "ApDevice"]


def _irq_label(vdev: VfioDevice, index: int) -> str:
    return ApIrq(index).name if index < lib.VFIO_AP_NUM_IRQS else CORE_OPS.irq_label(vdev, index)


AP_OPS: DeviceOps = dataclasses.replace(CORE_OPS, name="vfio-ap", irq_label=_irq_label)
"""The ops table of AP matrices; a variant driver replaces single entries of it."""


class ApDevice(BusDevice[ApMdev]):
    """A part of the AP matrix opened through VFIO; `vfio_user.open_ap` makes one.

    The queues themselves are used by the guest of a virtual machine, with its processor's AP instructions, not through
    this. Its interrupts are those of `ApIrq`: the kernel wants it back, the configuration has changed. `reset` zeroes
    the queues.

    Lifetime:
        `close()`, or the ``with`` block, before the virtual machine's. Closing twice does nothing.
    Locking:
        All methods may be called from any thread.
    """

    vdev = Embedded["ApDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, ApDevice.vdev)`` leads back."""
