"""What an IOMMU can do."""

from __future__ import annotations

from dataclasses import dataclass

from vfio_user.addresses import IovaRange

__all__ = ["IommuInfo"]


@dataclass(frozen=True, slots=True)
class IommuInfo:
    """What an IOMMU can do."""

    page_sizes: int
    """Bit mask of the page sizes; the lowest set bit is the granule of addresses and sizes. iommufd names that one
    only."""
    iova_ranges: tuple[IovaRange, ...]
    """Ranges of IOVAs that it translates, reserved windows left out; none where nothing is translated."""
    dma_avail: int | None
    """How many more mappings the kernel allows; `None` where it does not count."""
