"""Take mappings from the devices for a while, and give them back at the same IOVAs.

For mappings of device memory: the IOMMU's back ends are not told when a reset takes that memory away, so whoever
resets the device takes its mappings away first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vfio_user.iommu.mapping import DmaMapping

if TYPE_CHECKING:
    from vfio_user.iommu.mapper import Mapper

__all__ = ["resume", "suspend"]


def suspend(mappings: Iterable[DmaMapping]) -> None:
    """Take mappings from the devices in one batch for each address space; their IOVAs stay reserved.

    Mappings that abut are unmapped by one request. Those that are unmapped or suspended already are left out.

    Raises:
        VfioError: the kernel did not unmap all of them; those that it did are suspended.
    """
    by_mapper: dict[Mapper, list[DmaMapping]] = {}
    for mapping in mappings:
        by_mapper.setdefault(mapping._mapper, []).append(mapping)
    for mapper, chosen in by_mapper.items():
        mapper.suspend(chosen)


def resume(mapping: DmaMapping) -> None:
    """Map a suspended mapping again, at the same IOVA; one that was unmapped meanwhile stays so.

    Raises:
        VfioIoctlError: the kernel refused (EFAULT: the memory behind it is not there); it stays suspended.
    """
    mapping._mapper.resume(mapping)
