"""Enumerations of the uAPI: what devices, their regions and their interrupts are."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vfio_user._uapi import lib

__all__ = [
    "ApIrq",
    "AtomicCompletion",
    "CcwIrq",
    "CcwRegionSubtype",
    "DeviceCapability",
    "DeviceFlags",
    "HotResetFlags",
    "IoeventfdFlags",
    "IrqFlags",
    "IrqSet",
    "PciIrq",
    "PciRegion",
    "RegionCapability",
    "RegionFlags",
    "RegionType",
]


class DeviceFlags(IntFlag):
    """What a device is and can do (``VFIO_DEVICE_GET_INFO``)."""

    RESET = lib.VFIO_DEVICE_FLAGS_RESET
    """It can be reset by itself: ``VFIO_DEVICE_RESET``."""
    PCI = lib.VFIO_DEVICE_FLAGS_PCI
    """PCI, by vfio-pci or one of its variants, or a mediated device that looks like it."""
    PLATFORM = lib.VFIO_DEVICE_FLAGS_PLATFORM
    """Platform bus."""
    AMBA = lib.VFIO_DEVICE_FLAGS_AMBA
    """AMBA bus."""
    CCW = lib.VFIO_DEVICE_FLAGS_CCW
    """Channel I/O subchannel of s390."""
    AP = lib.VFIO_DEVICE_FLAGS_AP
    """Adjunct processor (crypto) matrix of s390."""
    FSL_MC = lib.VFIO_DEVICE_FLAGS_FSL_MC
    """Freescale management complex."""
    CAPS = lib.VFIO_DEVICE_FLAGS_CAPS
    """The reply has a capability chain."""
    CDX = lib.VFIO_DEVICE_FLAGS_CDX
    """AMD CDX bus."""


class DeviceCapability(IntEnum):
    """Ids in a device's capability chain."""

    ZPCI_BASE = lib.VFIO_DEVICE_INFO_CAP_ZPCI_BASE
    """zPCI function."""
    ZPCI_GROUP = lib.VFIO_DEVICE_INFO_CAP_ZPCI_GROUP
    """zPCI function group."""
    ZPCI_UTIL = lib.VFIO_DEVICE_INFO_CAP_ZPCI_UTIL
    """zPCI utility string, in EBCDIC."""
    ZPCI_PFIP = lib.VFIO_DEVICE_INFO_CAP_ZPCI_PFIP
    """zPCI path of the function."""
    PCI_ATOMIC_COMP = lib.VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP
    """Widths of atomic operations that the root completes."""


class AtomicCompletion(IntFlag):
    """Widths of PCIe atomic operations that the root port completes."""

    COMP32 = lib.VFIO_PCI_ATOMIC_COMP32
    """32 bits."""
    COMP64 = lib.VFIO_PCI_ATOMIC_COMP64
    """64 bits."""
    COMP128 = lib.VFIO_PCI_ATOMIC_COMP128
    """128 bits, compare and swap."""


class RegionFlags(IntFlag):
    """How a region can be accessed (``VFIO_DEVICE_GET_REGION_INFO``)."""

    READ = lib.VFIO_REGION_INFO_FLAG_READ
    """``pread()`` works."""
    WRITE = lib.VFIO_REGION_INFO_FLAG_WRITE
    """``pwrite()`` works."""
    MMAP = lib.VFIO_REGION_INFO_FLAG_MMAP
    """``mmap()`` works, on all of it or on the areas that a capability lists."""
    CAPS = lib.VFIO_REGION_INFO_FLAG_CAPS
    """The reply has a capability chain."""


class RegionCapability(IntEnum):
    """Ids in a region's capability chain."""

    SPARSE_MMAP = lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP
    """Only the areas listed can be mapped."""
    TYPE = lib.VFIO_REGION_INFO_CAP_TYPE
    """What a device-specific region is."""
    MSIX_MAPPABLE = lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE
    """The page of the MSI-X table can be mapped too."""
    NVLINK2_SSATGT = lib.VFIO_REGION_INFO_CAP_NVLINK2_SSATGT
    """NVLink2 address; no kernel offers it any more."""
    NVLINK2_LNKSPD = lib.VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD
    """NVLink2 speed; no kernel offers it any more."""


class RegionType(IntEnum):
    """Types of device-specific regions that are not a PCI vendor's."""

    GFX = lib.VFIO_REGION_TYPE_GFX
    """Display; its subtype is EDID."""
    CCW = lib.VFIO_REGION_TYPE_CCW
    """Channel I/O; subtypes in `CcwRegionSubtype`."""
    MIGRATION_DEPRECATED = lib.VFIO_REGION_TYPE_MIGRATION_DEPRECATED
    """Migration protocol 1."""


class CcwRegionSubtype(IntEnum):
    """Subtypes of regions of type `RegionType.CCW`."""

    ASYNC_CMD = lib.VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD
    """Halt and clear."""
    SCHIB = lib.VFIO_REGION_SUBTYPE_CCW_SCHIB
    """Subchannel-information block."""
    CRW = lib.VFIO_REGION_SUBTYPE_CCW_CRW
    """Channel report words."""


class IrqFlags(IntFlag):
    """What an interrupt index can do (``VFIO_DEVICE_GET_IRQ_INFO``)."""

    EVENTFD = lib.VFIO_IRQ_INFO_EVENTFD
    """It signals eventfds."""
    MASKABLE = lib.VFIO_IRQ_INFO_MASKABLE
    """Its vectors can be masked and unmasked."""
    AUTOMASKED = lib.VFIO_IRQ_INFO_AUTOMASKED
    """The kernel masks it when it fires; the driver unmasks."""
    NORESIZE = lib.VFIO_IRQ_INFO_NORESIZE
    """Vectors can only be added by setting up all of them again."""


class IrqSet(IntFlag):
    """Flags of ``VFIO_DEVICE_SET_IRQS``: one of DATA and one of ACTION."""

    DATA_NONE = lib.VFIO_IRQ_SET_DATA_NONE
    """No data follows: the action applies to each vector."""
    DATA_BOOL = lib.VFIO_IRQ_SET_DATA_BOOL
    """A byte for each vector: act where it is not 0."""
    DATA_EVENTFD = lib.VFIO_IRQ_SET_DATA_EVENTFD
    """An ``int32_t`` for each vector: an eventfd, or -1 for none."""
    ACTION_MASK = lib.VFIO_IRQ_SET_ACTION_MASK
    """Mask."""
    ACTION_UNMASK = lib.VFIO_IRQ_SET_ACTION_UNMASK
    """Unmask."""
    ACTION_TRIGGER = lib.VFIO_IRQ_SET_ACTION_TRIGGER
    """Set up what is signalled, or signal it."""


class PciRegion(IntEnum):
    """Indexes of a PCI device's regions; device-specific ones follow from 9 (`VFIO_PCI_NUM_REGIONS`)."""

    BAR0 = lib.VFIO_PCI_BAR0_REGION_INDEX
    """Base address register 0."""
    BAR1 = lib.VFIO_PCI_BAR1_REGION_INDEX
    """Base address register 1."""
    BAR2 = lib.VFIO_PCI_BAR2_REGION_INDEX
    """Base address register 2."""
    BAR3 = lib.VFIO_PCI_BAR3_REGION_INDEX
    """Base address register 3."""
    BAR4 = lib.VFIO_PCI_BAR4_REGION_INDEX
    """Base address register 4."""
    BAR5 = lib.VFIO_PCI_BAR5_REGION_INDEX
    """Base address register 5."""
    ROM = lib.VFIO_PCI_ROM_REGION_INDEX
    """Expansion ROM, read only."""
    CONFIG = lib.VFIO_PCI_CONFIG_REGION_INDEX
    """Configuration space; never mapped."""
    VGA = lib.VFIO_PCI_VGA_REGION_INDEX
    """Legacy VGA ranges, at their addresses within the first megabyte."""


class PciIrq(IntEnum):
    """Indexes of a PCI device's interrupts."""

    INTX = lib.VFIO_PCI_INTX_IRQ_INDEX
    """Legacy pin."""
    MSI = lib.VFIO_PCI_MSI_IRQ_INDEX
    """MSI."""
    MSIX = lib.VFIO_PCI_MSIX_IRQ_INDEX
    """MSI-X."""
    ERR = lib.VFIO_PCI_ERR_IRQ_INDEX
    """The kernel reports an uncorrectable error of the device."""
    REQ = lib.VFIO_PCI_REQ_IRQ_INDEX
    """The kernel asks for the device back."""


class CcwIrq(IntEnum):
    """Indexes of a channel I/O device's interrupts."""

    IO = lib.VFIO_CCW_IO_IRQ_INDEX
    """I/O interrupt."""
    CRW = lib.VFIO_CCW_CRW_IRQ_INDEX
    """A channel report word is there."""
    REQ = lib.VFIO_CCW_REQ_IRQ_INDEX
    """The kernel asks for the device back."""


class ApIrq(IntEnum):
    """Indexes of an adjunct processor matrix's interrupts."""

    REQ = lib.VFIO_AP_REQ_IRQ_INDEX
    """The kernel asks for the device back."""
    CFG_CHG = lib.VFIO_AP_CFG_CHG_IRQ_INDEX
    """The matrix changed."""


class HotResetFlags(IntFlag):
    """How ``VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`` names the devices."""

    DEV_ID = lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID
    """By iommufd's id, not by group."""
    DEV_ID_OWNED = lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED
    """All of them are owned through the same iommufd."""


class IoeventfdFlags(IntFlag):
    """Width of the write that an eventfd triggers (``VFIO_DEVICE_IOEVENTFD``)."""

    WIDTH_8 = lib.VFIO_DEVICE_IOEVENTFD_8
    """8 bits."""
    WIDTH_16 = lib.VFIO_DEVICE_IOEVENTFD_16
    """16 bits."""
    WIDTH_32 = lib.VFIO_DEVICE_IOEVENTFD_32
    """32 bits."""
    WIDTH_64 = lib.VFIO_DEVICE_IOEVENTFD_64
    """64 bits."""
