"""Enumerations of the uAPI: groups, containers and iommufd."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vfio_user._uapi import lib

__all__ = [
    "DirtyPagesFlags",
    "DmaMapFlags",
    "DmaUnmapFlags",
    "Extension",
    "GroupFlags",
    "HwCapabilities",
    "HwInfoType",
    "HwptAllocFlags",
    "IoasMapFlags",
    "IommuCapability",
    "IommuInfoFlags",
]


class GroupFlags(IntFlag):
    """State of a group (``VFIO_GROUP_GET_STATUS``)."""

    VIABLE = lib.VFIO_GROUP_FLAGS_VIABLE
    """All its devices are bound to VFIO, or to nothing that does DMA."""
    CONTAINER_SET = lib.VFIO_GROUP_FLAGS_CONTAINER_SET
    """It is in a container."""


class Extension(IntEnum):
    """What a container can be asked for (``VFIO_CHECK_EXTENSION``)."""

    TYPE1_IOMMU = lib.VFIO_TYPE1_IOMMU
    """Page tables, version 1: a mapping can be unmapped in parts."""
    SPAPR_TCE_IOMMU = lib.VFIO_SPAPR_TCE_IOMMU
    """POWER, version 1."""
    TYPE1V2_IOMMU = lib.VFIO_TYPE1v2_IOMMU
    """Page tables, version 2: a mapping is unmapped whole."""
    DMA_CC_IOMMU = lib.VFIO_DMA_CC_IOMMU
    """DMA is coherent even if a device asks for no snooping."""
    EEH = lib.VFIO_EEH
    """Error handling of POWER."""
    SPAPR_TCE_V2_IOMMU = lib.VFIO_SPAPR_TCE_v2_IOMMU
    """POWER, version 2: memory is registered first."""
    NOIOMMU_IOMMU = lib.VFIO_NOIOMMU_IOMMU
    """No translation and no isolation."""
    UNMAP_ALL = lib.VFIO_UNMAP_ALL
    """`DmaUnmapFlags.ALL` works."""
    UPDATE_VADDR = lib.VFIO_UPDATE_VADDR
    """The VADDR flags of map and unmap work."""


class IommuInfoFlags(IntFlag):
    """What ``VFIO_IOMMU_GET_INFO`` filled in."""

    PGSIZES = lib.VFIO_IOMMU_INFO_PGSIZES
    """Page sizes."""
    CAPS = lib.VFIO_IOMMU_INFO_CAPS
    """The reply has a capability chain."""


class IommuCapability(IntEnum):
    """Ids in the capability chain of a type 1 IOMMU."""

    IOVA_RANGE = lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE
    """Ranges of IOVAs that can be mapped."""
    MIGRATION = lib.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION
    """Dirty pages can be logged."""
    DMA_AVAIL = lib.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
    """How many more mappings there may be."""


class DmaMapFlags(IntFlag):
    """Flags of ``VFIO_IOMMU_MAP_DMA``."""

    READ = lib.VFIO_DMA_MAP_FLAG_READ
    """The device may read."""
    WRITE = lib.VFIO_DMA_MAP_FLAG_WRITE
    """The device may write."""
    VADDR = lib.VFIO_DMA_MAP_FLAG_VADDR
    """Only replace the virtual address of a mapping."""


class DmaUnmapFlags(IntFlag):
    """Flags of ``VFIO_IOMMU_UNMAP_DMA``."""

    GET_DIRTY_BITMAP = lib.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
    """Also tell what the device wrote to."""
    ALL = lib.VFIO_DMA_UNMAP_FLAG_ALL
    """Everything; address and size are 0."""
    VADDR = lib.VFIO_DMA_UNMAP_FLAG_VADDR
    """Only forget the virtual address; DMA goes on."""


class DirtyPagesFlags(IntFlag):
    """Operations of ``VFIO_IOMMU_DIRTY_PAGES``; exactly one."""

    START = lib.VFIO_IOMMU_DIRTY_PAGES_FLAG_START
    """Begin to log."""
    STOP = lib.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP
    """Stop."""
    GET_BITMAP = lib.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
    """Read and clear a range."""


class IoasMapFlags(IntFlag):
    """Flags of ``IOMMU_IOAS_MAP``, ``_MAP_FILE`` and ``_COPY``."""

    FIXED_IOVA = lib.IOMMU_IOAS_MAP_FIXED_IOVA
    """At the IOVA given, not at one of the kernel's choice."""
    WRITEABLE = lib.IOMMU_IOAS_MAP_WRITEABLE
    """The device may write."""
    READABLE = lib.IOMMU_IOAS_MAP_READABLE
    """The device may read."""


class HwptAllocFlags(IntFlag):
    """Flags of ``IOMMU_HWPT_ALLOC``."""

    NEST_PARENT = lib.IOMMU_HWPT_ALLOC_NEST_PARENT
    """Others can be nested in it."""
    DIRTY_TRACKING = lib.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
    """It can track what devices write to."""
    FAULT_ID_VALID = lib.IOMMU_HWPT_FAULT_ID_VALID
    """Page faults go to the fault queue that is named."""
    PASID = lib.IOMMU_HWPT_ALLOC_PASID
    """It can be attached with a PASID."""


class HwInfoType(IntEnum):
    """Kinds of IOMMU hardware (``IOMMU_GET_HW_INFO``)."""

    NONE = lib.IOMMU_HW_INFO_TYPE_NONE
    """Its driver tells nothing."""
    INTEL_VTD = lib.IOMMU_HW_INFO_TYPE_INTEL_VTD
    """Intel VT-d."""
    ARM_SMMUV3 = lib.IOMMU_HW_INFO_TYPE_ARM_SMMUV3
    """Arm SMMUv3."""
    TEGRA241_CMDQV = lib.IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV
    """NVIDIA's command queues on an SMMUv3."""
    AMD = lib.IOMMU_HW_INFO_TYPE_AMD
    """AMD IOMMU."""


class HwCapabilities(IntFlag):
    """What the IOMMU behind a device can do (``IOMMU_GET_HW_INFO``)."""

    DIRTY_TRACKING = lib.IOMMU_HW_CAP_DIRTY_TRACKING
    """It tracks what the device writes to."""
    PCI_PASID_EXEC = lib.IOMMU_HW_CAP_PCI_PASID_EXEC
    """PASIDs carry the execute permission."""
    PCI_PASID_PRIV = lib.IOMMU_HW_CAP_PCI_PASID_PRIV
    """PASIDs carry the privileged mode."""
    PCI_ATS_NOT_SUPPORTED = lib.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED
    """The device can't cache translations."""
