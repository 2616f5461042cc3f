"""Write drivers for real devices in Python, over the kernel's ``/dev/vfio``.

Start with `open`, which gives a `PciDevice`: its ``bars`` for registers, ``irqs`` for interrupts, ``dma_alloc`` for
memory that the device reaches. Errors are in `vfio_user.errors`, drivers in `vfio_user.drivers`.

This is not the vfio-user protocol, which carries emulated devices over a socket.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vfio_user._mmio import Program
from vfio_user.addresses import Iova, IovaRange, PciAddress, PciId, Vaddr
from vfio_user.device import (
    DeviceHealth,
    DeviceOps,
    DeviceSet,
    Embedded,
    IrqIndex,
    IrqPoller,
    IrqVector,
    PeerMapping,
    Region,
    VfioDevice,
    container_of,
    open_devices,
)
from vfio_user.errors import VfioError
from vfio_user.iommu import AddressSpace, DmaBuffer, DmaMapping, DmaPool, DmaSlice, IommuMode
from vfio_user.kernel.sysfs import PciFunction, pci_function, pci_functions
from vfio_user.mdev import MdevDevice
from vfio_user.pci import PCI_OPS, PciDevice, PciDeviceSet, ResetPlan, ResetReport, hot_reset
from vfio_user.session import Devices, open, open_all, open_mdev

if TYPE_CHECKING:
    from vfio_user.binding import Binding, Restored, bind, bound, restore, unbind
    from vfio_user.doctor import Diagnosis, explain
    from vfio_user.inventory import inspect, survey

__all__ = [
    "PCI_OPS",
    "AddressSpace",
    "Binding",
    "DeviceHealth",
    "DeviceOps",
    "DeviceSet",
    "Devices",
    "Diagnosis",
    "DmaBuffer",
    "DmaMapping",
    "DmaPool",
    "DmaSlice",
    "Embedded",
    "IommuMode",
    "Iova",
    "IovaRange",
    "IrqIndex",
    "IrqPoller",
    "IrqVector",
    "MdevDevice",
    "PciAddress",
    "PciDevice",
    "PciDeviceSet",
    "PciFunction",
    "PciId",
    "PeerMapping",
    "Program",
    "Region",
    "ResetPlan",
    "ResetReport",
    "Restored",
    "Vaddr",
    "VfioDevice",
    "VfioError",
    "bind",
    "bound",
    "container_of",
    "explain",
    "hot_reset",
    "inspect",
    "open",
    "open_all",
    "open_devices",
    "open_mdev",
    "pci_function",
    "pci_functions",
    "restore",
    "survey",
    "unbind",
]

#: Names that are imported when they are first used: most programs only open a device, and start faster without them.
_LATER = {
    "Binding": "vfio_user.binding",
    "Diagnosis": "vfio_user.doctor",
    "Restored": "vfio_user.binding",
    "bind": "vfio_user.binding",
    "bound": "vfio_user.binding",
    "explain": "vfio_user.doctor",
    "inspect": "vfio_user.inventory",
    "restore": "vfio_user.binding",
    "survey": "vfio_user.inventory",
    "unbind": "vfio_user.binding",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
