"""Write drivers for real devices in Python, over the kernel's ``/dev/vfio``.

Start with `open`, which gives a `PciDevice`: its ``bars`` for registers, ``irqs`` for interrupts, ``dma_alloc`` for
memory that the device reaches. Errors are in `vfio_user.errors`, drivers in `vfio_user.drivers`.

This is not the vfio-user protocol, which carries emulated devices over a socket.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfio_user._mmio import Program
    from vfio_user.addresses import Iova, IovaRange, PciAddress, PciId, Vaddr
    from vfio_user.ap import ApDevice
    from vfio_user.binding import Binding, Restored, VirtualFunctions, bind, bound, create_vfs, restore, unbind
    from vfio_user.buses import open_amba, open_ap, open_ccw, open_cdx, open_fsl_mc, open_platform
    from vfio_user.ccw import CcwDevice
    from vfio_user.cdx import CdxDevice
    from vfio_user.device import (
        DeviceEvent,
        DeviceEvents,
        DeviceHealth,
        DeviceOps,
        DeviceSet,
        Embedded,
        EventKind,
        IrqIndex,
        IrqPoller,
        IrqVector,
        PeerMapping,
        Region,
        VfioDevice,
        container_of,
        open_devices,
    )
    from vfio_user.doctor import Diagnosis, explain
    from vfio_user.errors import VfioError
    from vfio_user.fsl_mc import FslMcDevice
    from vfio_user.handover import Lease, borrow
    from vfio_user.inventory import inspect, survey
    from vfio_user.iommu import AddressSpace, DmaBuffer, DmaMapping, DmaPool, DmaSlice, IommuMode
    from vfio_user.kernel.sysfs import PciFunction, pci_function, pci_functions
    from vfio_user.mdev import MdevDevice
    from vfio_user.monitor import Monitor
    from vfio_user.pci import PCI_OPS, PciDevice, PciDeviceSet, ResetPlan, ResetReport, hot_reset
    from vfio_user.platform import AmbaDevice, PlatformDevice
    from vfio_user.session import Devices, open, open_all, open_mdev
    from vfio_user.tracing import Trace, trace

__all__ = [
    "PCI_OPS",
    "AddressSpace",
    "AmbaDevice",
    "ApDevice",
    "Binding",
    "CcwDevice",
    "CdxDevice",
    "DeviceEvent",
    "DeviceEvents",
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
    "EventKind",
    "FslMcDevice",
    "IommuMode",
    "Iova",
    "IovaRange",
    "IrqIndex",
    "IrqPoller",
    "IrqVector",
    "Lease",
    "MdevDevice",
    "Monitor",
    "PciAddress",
    "PciDevice",
    "PciDeviceSet",
    "PciFunction",
    "PciId",
    "PeerMapping",
    "PlatformDevice",
    "Program",
    "Region",
    "ResetPlan",
    "ResetReport",
    "Restored",
    "Trace",
    "Vaddr",
    "VfioDevice",
    "VfioError",
    "VirtualFunctions",
    "bind",
    "borrow",
    "bound",
    "container_of",
    "create_vfs",
    "explain",
    "hot_reset",
    "inspect",
    "open",
    "open_all",
    "open_amba",
    "open_ap",
    "open_ccw",
    "open_cdx",
    "open_devices",
    "open_fsl_mc",
    "open_mdev",
    "open_platform",
    "pci_function",
    "pci_functions",
    "restore",
    "survey",
    "trace",
    "unbind",
]

#: Where the names come from. They are imported when they are first used: programs start faster without what they don't
#: use, and a program that only shows its help uses nothing.
_HOMES = {
    "AddressSpace": "vfio_user.iommu",
    "ApDevice": "vfio_user.ap",
    "AmbaDevice": "vfio_user.platform",
    "Binding": "vfio_user.binding",
    "DeviceEvent": "vfio_user.device",
    "DeviceEvents": "vfio_user.device",
    "CcwDevice": "vfio_user.ccw",
    "CdxDevice": "vfio_user.cdx",
    "DeviceHealth": "vfio_user.device",
    "DeviceOps": "vfio_user.device",
    "DeviceSet": "vfio_user.device",
    "Devices": "vfio_user.session",
    "Diagnosis": "vfio_user.doctor",
    "DmaBuffer": "vfio_user.iommu",
    "DmaMapping": "vfio_user.iommu",
    "DmaPool": "vfio_user.iommu",
    "DmaSlice": "vfio_user.iommu",
    "Embedded": "vfio_user.device",
    "EventKind": "vfio_user.device",
    "FslMcDevice": "vfio_user.fsl_mc",
    "IommuMode": "vfio_user.iommu",
    "Iova": "vfio_user.addresses",
    "IovaRange": "vfio_user.addresses",
    "IrqIndex": "vfio_user.device",
    "IrqPoller": "vfio_user.device",
    "IrqVector": "vfio_user.device",
    "Lease": "vfio_user.handover",
    "MdevDevice": "vfio_user.mdev",
    "Monitor": "vfio_user.monitor",
    "PCI_OPS": "vfio_user.pci",
    "PciAddress": "vfio_user.addresses",
    "PciDevice": "vfio_user.pci",
    "PciDeviceSet": "vfio_user.pci",
    "PciFunction": "vfio_user.kernel.sysfs",
    "PciId": "vfio_user.addresses",
    "PeerMapping": "vfio_user.device",
    "PlatformDevice": "vfio_user.platform",
    "Program": "vfio_user._mmio",
    "Region": "vfio_user.device",
    "ResetPlan": "vfio_user.pci",
    "ResetReport": "vfio_user.pci",
    "Restored": "vfio_user.binding",
    "Trace": "vfio_user.tracing",
    "Vaddr": "vfio_user.addresses",
    "VfioDevice": "vfio_user.device",
    "VfioError": "vfio_user.errors",
    "VirtualFunctions": "vfio_user.binding",
    "bind": "vfio_user.binding",
    "borrow": "vfio_user.handover",
    "bound": "vfio_user.binding",
    "container_of": "vfio_user.device",
    "create_vfs": "vfio_user.binding",
    "explain": "vfio_user.doctor",
    "hot_reset": "vfio_user.pci",
    "inspect": "vfio_user.inventory",
    "open": "vfio_user.session",
    "open_all": "vfio_user.session",
    "open_ap": "vfio_user.buses",
    "open_amba": "vfio_user.buses",
    "open_ccw": "vfio_user.buses",
    "open_cdx": "vfio_user.buses",
    "open_devices": "vfio_user.device",
    "open_fsl_mc": "vfio_user.buses",
    "open_mdev": "vfio_user.session",
    "open_platform": "vfio_user.buses",
    "pci_function": "vfio_user.kernel.sysfs",
    "pci_functions": "vfio_user.kernel.sysfs",
    "restore": "vfio_user.binding",
    "survey": "vfio_user.inventory",
    "trace": "vfio_user.tracing",
    "unbind": "vfio_user.binding",
}
_MODULES = (
    "addresses",
    "device",
    "drivers",
    "errors",
    "handover",
    "iommu",
    "kernel",
    "mdev",
    "memory",
    "pci",
    "session",
)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *__all__})
