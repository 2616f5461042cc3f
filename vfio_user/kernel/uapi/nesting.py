"""Enumerations of the uAPI: nested page tables, page faults and virtual IOMMUs of iommufd."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vfio_user._uapi import lib

__all__ = [
    "HwQueueType",
    "HwptDataType",
    "InvalidateType",
    "PageFaultFlags",
    "PageFaultPermission",
    "PageResponse",
    "VeventFlags",
    "VeventqType",
    "ViommuType",
]


class HwptDataType(IntEnum):
    """What a user-managed page table is described by (``IOMMU_HWPT_ALLOC``)."""

    NONE = lib.IOMMU_HWPT_DATA_NONE
    """Nothing: the kernel manages it."""
    VTD_S1 = lib.IOMMU_HWPT_DATA_VTD_S1
    """Intel VT-d first stage."""
    ARM_SMMUV3 = lib.IOMMU_HWPT_DATA_ARM_SMMUV3
    """Arm SMMUv3 stream table entry."""
    AMD_GUEST = lib.IOMMU_HWPT_DATA_AMD_GUEST
    """AMD device table entry of a guest."""


class InvalidateType(IntEnum):
    """What an invalidation entry is (``IOMMU_HWPT_INVALIDATE``)."""

    VTD_S1 = lib.IOMMU_HWPT_INVALIDATE_DATA_VTD_S1
    """Range of a VT-d first stage."""
    ARM_SMMUV3 = lib.IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3
    """Command of an Arm SMMUv3, for a virtual IOMMU."""


class PageFaultFlags(IntFlag):
    """What is valid in a page fault."""

    PASID_VALID = lib.IOMMU_PGFAULT_FLAGS_PASID_VALID
    """It came with a PASID."""
    LAST_PAGE = lib.IOMMU_PGFAULT_FLAGS_LAST_PAGE
    """It is the last one of its group, the one to answer."""


class PageFaultPermission(IntFlag):
    """What the device wanted to do at the address of a page fault."""

    READ = lib.IOMMU_PGFAULT_PERM_READ
    """Read."""
    WRITE = lib.IOMMU_PGFAULT_PERM_WRITE
    """Write."""
    EXEC = lib.IOMMU_PGFAULT_PERM_EXEC
    """Execute."""
    PRIV = lib.IOMMU_PGFAULT_PERM_PRIV
    """In privileged mode."""


class PageResponse(IntEnum):
    """Answer to a page fault."""

    SUCCESS = lib.IOMMUFD_PAGE_RESP_SUCCESS
    """The page is there now: the device tries again."""
    INVALID = lib.IOMMUFD_PAGE_RESP_INVALID
    """It is not: the device's access fails."""


class ViommuType(IntEnum):
    """Kinds of virtual IOMMUs (``IOMMU_VIOMMU_ALLOC``)."""

    DEFAULT = lib.IOMMU_VIOMMU_TYPE_DEFAULT
    """None in particular; kernels refuse it so far."""
    ARM_SMMUV3 = lib.IOMMU_VIOMMU_TYPE_ARM_SMMUV3
    """Arm SMMUv3."""
    TEGRA241_CMDQV = lib.IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV
    """NVIDIA's command queues on an SMMUv3."""


class VeventFlags(IntFlag):
    """What is special about an event of a virtual IOMMU."""

    LOST_EVENTS = lib.IOMMU_VEVENTQ_FLAG_LOST_EVENTS
    """The queue was full: events are missing, and this one carries none."""


class VeventqType(IntEnum):
    """Kinds of event queues of a virtual IOMMU (``IOMMU_VEVENTQ_ALLOC``)."""

    DEFAULT = lib.IOMMU_VEVENTQ_TYPE_DEFAULT
    """None in particular; kernels refuse it so far."""
    ARM_SMMUV3 = lib.IOMMU_VEVENTQ_TYPE_ARM_SMMUV3
    """Event records of an Arm SMMUv3."""
    TEGRA241_CMDQV = lib.IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV
    """Errors of NVIDIA's command queues."""


class HwQueueType(IntEnum):
    """Kinds of hardware queues of a virtual IOMMU (``IOMMU_HW_QUEUE_ALLOC``)."""

    DEFAULT = lib.IOMMU_HW_QUEUE_TYPE_DEFAULT
    """None in particular; kernels refuse it so far."""
    TEGRA241_CMDQV = lib.IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV
    """A virtual command queue of NVIDIA's."""
