"""iommufd: address spaces, page tables and devices by the newer of the kernel's two interfaces.

Typed calls, one for each request; `AddressSpace` with the mode ``"iommufd"`` is built on them and keeps the books. Use
these for what has no counterpart elsewhere: page tables with features, nesting, virtual IOMMUs, moving devices between
address spaces.
"""

from __future__ import annotations

from vfio_user.iommu.iommufd.backend import IommufdBackend
from vfio_user.iommu.iommufd.device import BoundDevice, bind
from vfio_user.iommu.iommufd.events import FaultQueue, PageFault, Vevent, VeventQueue
from vfio_user.iommu.iommufd.fd import Iommufd
from vfio_user.iommu.iommufd.hwinfo import AmdInfo, ArmSmmuv3Info, HwInfo, Tegra241CmdqvInfo, VtdInfo
from vfio_user.iommu.iommufd.hwpt import (
    AmdGuest,
    ArmSmmuv3Command,
    ArmSmmuv3Ste,
    Hwpt,
    HwptData,
    InvalidateEntry,
    NestedHwpt,
    VtdInvalidate,
    VtdS1,
)
from vfio_user.iommu.iommufd.ioas import Ioas, IoasRanges
from vfio_user.iommu.iommufd.object import IommufdObject
from vfio_user.iommu.iommufd.viommu import HwQueue, Vdevice, Viommu

__all__ = [
    "AmdGuest",
    "AmdInfo",
    "ArmSmmuv3Command",
    "ArmSmmuv3Info",
    "ArmSmmuv3Ste",
    "BoundDevice",
    "FaultQueue",
    "HwInfo",
    "HwQueue",
    "Hwpt",
    "HwptData",
    "InvalidateEntry",
    "Ioas",
    "IoasRanges",
    "Iommufd",
    "IommufdBackend",
    "IommufdObject",
    "NestedHwpt",
    "PageFault",
    "Tegra241CmdqvInfo",
    "Vdevice",
    "Vevent",
    "VeventQueue",
    "Viommu",
    "VtdInfo",
    "VtdInvalidate",
    "VtdS1",
    "bind",
]
