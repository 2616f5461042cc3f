"""Map a device's regions into its window of addresses."""

from __future__ import annotations

from collections.abc import Mapping

from vfio_user._mmio import Mmio, Window
from vfio_user._uapi import lib
from vfio_user.device.info import RegionInfo, SparseArea
from vfio_user.kernel.mman import PAGE_SIZE, round_up
from vfio_user.kernel.uapi import RegionFlags
from vfio_user.memory.window import layout

__all__ = ["map_regions"]


def map_regions(
    fd: int, name: str, regions: Mapping[int, tuple[RegionInfo, tuple[SparseArea, ...]]]
) -> tuple[Window | None, dict[int, Mmio]]:
    """Reserve one window for a device and map its regions at fixed places in it.

    Args:
        fd: the device's file.
        name: the device, for messages.
        regions: for each index what the kernel says of the region, and the parts to map.

    Returns:
        The window, and an accessor for each region of which something is mapped; no window when nothing is.

    Raises:
        VfioOSError: no addresses (ENOMEM), or the kernel refused a mapping; nothing stays mapped then.
    """
    chosen = {index: (info, areas) for index, (info, areas) in regions.items() if areas}
    if not chosen:
        return None, {}
    plan = layout({index: info.size for index, (info, _) in chosen.items()})
    window = Window(plan.size, plan.align, name)
    try:
        accessors = {}
        for index, (info, areas) in chosen.items():
            place = plan.places[index]
            protection = _protection(info.flags)
            for area in areas:
                # The kernel maps whole pages; a BAR smaller than that has its page to itself, or is not mappable.
                length = round_up(area.size, PAGE_SIZE)
                window.map(place + area.offset, length, fd, info.file_offset + area.offset, protection)
            accessors[index] = Mmio(
                window,
                place,
                info.size,
                [(area.offset, area.size) for area in areas],
                bool(info.flags & RegionFlags.WRITE),
                f"{name} region {index}",
            )
        return window, accessors
    except BaseException:
        window.close()
        raise


def _protection(flags: RegionFlags) -> int:
    readable = lib.PROT_READ if flags & RegionFlags.READ else 0
    return readable | (lib.PROT_WRITE if flags & RegionFlags.WRITE else 0)
