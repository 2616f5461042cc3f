"""Enumerations of the uAPI, for what our own API takes and gives.

Values come from the declarations. A flag that is newer than this package is kept as a number in a set of flags; an
enumeration refuses one (`ValueError`), so code that reads the kernel's numbers compares integers.
"""

from __future__ import annotations

from vfio_user.kernel.uapi.device import (
    ApIrq,
    AtomicCompletion,
    CcwIrq,
    CcwRegionSubtype,
    DeviceCapability,
    DeviceFlags,
    HotResetFlags,
    IoeventfdFlags,
    IrqFlags,
    IrqSet,
    PciIrq,
    PciRegion,
    RegionCapability,
    RegionFlags,
    RegionType,
)
from vfio_user.kernel.uapi.display import GfxLinkState, GfxPlaneType
from vfio_user.kernel.uapi.feature import (
    DeviceFeature,
    FeatureOperation,
    MigrationFlags,
    MigrationState,
)
from vfio_user.kernel.uapi.iommu import (
    DirtyPagesFlags,
    DmaMapFlags,
    DmaUnmapFlags,
    Extension,
    GroupFlags,
    HwCapabilities,
    HwInfoType,
    HwptAllocFlags,
    IoasMapFlags,
    IommuCapability,
    IommuInfoFlags,
)
from vfio_user.kernel.uapi.nesting import (
    HwptDataType,
    HwQueueType,
    InvalidateType,
    PageFaultFlags,
    PageFaultPermission,
    PageResponse,
    VeventFlags,
    VeventqType,
    ViommuType,
)

__all__ = [
    "ApIrq",
    "AtomicCompletion",
    "CcwIrq",
    "CcwRegionSubtype",
    "DeviceCapability",
    "DeviceFeature",
    "DeviceFlags",
    "DirtyPagesFlags",
    "DmaMapFlags",
    "DmaUnmapFlags",
    "Extension",
    "FeatureOperation",
    "GfxLinkState",
    "GfxPlaneType",
    "GroupFlags",
    "HotResetFlags",
    "HwCapabilities",
    "HwInfoType",
    "HwQueueType",
    "HwptAllocFlags",
    "HwptDataType",
    "InvalidateType",
    "IoasMapFlags",
    "IoeventfdFlags",
    "IommuCapability",
    "IommuInfoFlags",
    "IrqFlags",
    "IrqSet",
    "MigrationFlags",
    "MigrationState",
    "PageFaultFlags",
    "PageFaultPermission",
    "PageResponse",
    "PciIrq",
    "PciRegion",
    "RegionCapability",
    "RegionFlags",
    "RegionType",
    "VeventFlags",
    "VeventqType",
    "ViommuType",
]
