"""The MSI-X table: where it sits, and how to map round it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user._uapi import lib
from vfio_user.device.info import SparseArea

if TYPE_CHECKING:
    from vfio_user.device.base import VfioDevice

__all__ = ["MsixTable", "cut_hole", "find_table"]

_CAPABILITY_SIZE = 12
_ENTRY_SIZE = 16
_MSIX = 0x11


@dataclass(frozen=True, slots=True)
class MsixTable:
    """Where the vectors of MSI-X are kept (PCI Local Bus 3.0, 6.8.2)."""

    bar: int
    """BAR that holds it."""
    offset: int
    """Where it begins in the BAR."""
    size: int
    """Its size in bytes."""


def find_table(vdev: VfioDevice) -> MsixTable | None:
    """Find the MSI-X table by the configuration space; `None` when the device has none."""
    base = vdev.ops.region_info(vdev, lib.VFIO_PCI_CONFIG_REGION_INDEX).file_offset
    header = vdev.ops.read(vdev, base, 256)
    if not header[6] & 0x10:
        return None
    offset, seen = header[0x34] & ~3, set[int]()
    while 0x40 <= offset <= 0xFC and offset not in seen:
        seen.add(offset)
        if header[offset] == _MSIX and offset + _CAPABILITY_SIZE <= len(header):
            control, location = struct.unpack_from("<HI", header, offset + 2)
            return MsixTable(location & 7, location & ~7, ((control & 0x7FF) + 1) * _ENTRY_SIZE)
        offset = header[offset + 1] & ~3
    return None


def cut_hole(areas: Iterable[SparseArea], offset: int, size: int, page_size: int) -> tuple[SparseArea, ...]:
    """Cut a range out of mappable areas, widened to whole pages."""
    start = offset & -page_size
    end = -(-(offset + size) // page_size) * page_size
    kept: list[SparseArea] = []
    for area in areas:
        if area.offset < start:
            kept.append(SparseArea(area.offset, min(area.end, start) - area.offset))
        if area.end > end:
            begin = max(area.offset, end)
            kept.append(SparseArea(begin, area.end - begin))
    return tuple(kept)
