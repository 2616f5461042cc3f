"""Write drivers for real devices in Python, over the kernel's ``/dev/vfio``.

Start with `open`, which gives a `PciDevice`: its ``bars`` for registers, ``irqs`` for interrupts, ``dma_alloc`` for
memory that the device reaches. Errors are in `vfio_user.errors`, drivers in `vfio_user.drivers`.

This is not the vfio-user protocol, which carries emulated devices over a socket.
"""

from __future__ import annotations

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
from vfio_user.pci import PCI_OPS, PciDevice, PciDeviceSet, ResetPlan, ResetReport, hot_reset
from vfio_user.session import Devices, open, open_all

__all__ = [
    "PCI_OPS",
    "AddressSpace",
    "DeviceHealth",
    "DeviceOps",
    "DeviceSet",
    "Devices",
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
    "Vaddr",
    "VfioDevice",
    "VfioError",
    "container_of",
    "hot_reset",
    "open",
    "open_all",
    "open_devices",
    "pci_function",
    "pci_functions",
]
