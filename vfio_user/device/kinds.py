"""Device-specific regions: what their types and subtypes mean, by ``linux/vfio.h``."""

from __future__ import annotations

from vfio_user._uapi import lib
from vfio_user.kernel.uapi import CcwRegionSubtype, RegionType

__all__ = ["kind_name", "vendor_type"]

_INTEL, _NVIDIA, _IBM = 0x8086, 0x10DE, 0x1014


def vendor_type(vendor: int) -> int:
    """Give the type of the regions that a PCI vendor defines, by its id."""
    return int(lib.VFIO_REGION_TYPE_PCI_VENDOR_TYPE) | vendor & int(lib.VFIO_REGION_TYPE_PCI_VENDOR_MASK)


_NAMES: dict[tuple[int, int], str] = {
    (RegionType.GFX, lib.VFIO_REGION_SUBTYPE_GFX_EDID): "monitor (EDID)",
    (RegionType.CCW, CcwRegionSubtype.ASYNC_CMD): "halt and clear",
    (RegionType.CCW, CcwRegionSubtype.SCHIB): "subchannel-information block",
    (RegionType.CCW, CcwRegionSubtype.CRW): "channel report words",
    (RegionType.MIGRATION_DEPRECATED, lib.VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED): "migration, protocol 1",
    (vendor_type(_INTEL), lib.VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION): "IGD OpRegion",
    (vendor_type(_INTEL), lib.VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG): "IGD host bridge",
    (vendor_type(_INTEL), lib.VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG): "IGD LPC bridge",
    (vendor_type(_NVIDIA), lib.VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM): "NVLink2 memory",
    (vendor_type(_IBM), lib.VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD): "NVLink2 ATSD",
}


def kind_name(kind: int, subtype: int) -> str:
    """Give what a region is, in words; by its numbers where they have none here."""
    known = _NAMES.get((kind, subtype))
    if known is not None:
        return known
    if kind & lib.VFIO_REGION_TYPE_PCI_VENDOR_TYPE:
        return f"vendor {kind & lib.VFIO_REGION_TYPE_PCI_VENDOR_MASK:04x} region {subtype}"
    return f"type {kind:#x}/{subtype:#x}"
