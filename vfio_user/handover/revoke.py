"""End what was handed over, as far as the kernel lets who has the files too."""

from __future__ import annotations

import logging
import os

from vfio_user.binding.uses import openers
from vfio_user.errors import VfioError
from vfio_user.handover.parcel import Parcel
from vfio_user.iommu.backend import open_backend
from vfio_user.iommu.iommufd import BoundDevice
from vfio_user.kernel.ioctl import ioctl, requests
from vfio_user.kernel.sysfs import PciFunction

__all__ = ["revoke"]

_log = logging.getLogger(__name__)


def revoke(parcel: Parcel) -> tuple[int, ...]:
    """Take memory from devices that were lent, and close them; give the processes that still have one open.

    The kernel resets a device when the last file of it is closed. Where somebody keeps one, it is reset here, so that
    it forgets what it was told to do; the files themselves can't be taken from another process.
    """
    left = []
    for device in parcel.devices:
        others = [(pid, name) for pid, name in openers(PciFunction(device.address)) if pid != os.getpid()]
        left += [pid for pid, _ in others]
        if others:
            names = ", ".join(f"{name} ({pid})" for pid, name in others)
            _log.warning("the lease of %s is over, and %s still has it open; it is reset", device.address, names)
    try:
        backend = open_backend(parcel.space.mode, parcel.space)
        for device in parcel.devices:
            if isinstance(device.fd, BoundDevice):  # the peer may have made more address spaces, and moved it there
                device.fd.detach_pt()
            if left:
                ioctl(device.fd.fileno(), requests.VFIO_DEVICE_RESET, device=str(device.address))
        backend.unmap_all()
    except VfioError as error:
        _log.warning("while a lease was ended: %s", error)
    finally:
        parcel.close()
    return tuple(sorted(set(left)))
