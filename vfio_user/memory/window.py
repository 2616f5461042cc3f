"""Where regions lie in a device's window, and the words for a window's state."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from vfio_user import _mmio
from vfio_user.errors import ArgumentError

__all__ = ["Layout", "WindowFlag", "WindowState", "ZapReason", "layout"]

_PMD = 2 << 20
_PUD = 1 << 30


class WindowState(IntEnum):
    """State of a window's mappings: `Window.state`."""

    LIVE = _mmio.STATE_LIVE
    """The regions are mapped."""
    ZAPPED = _mmio.STATE_ZAPPED
    """Nothing is mapped; views read all-ones, accessors raise."""
    REVIVING = _mmio.STATE_REVIVING
    """The regions are being mapped again; an access waits for that."""
    CLOSED = _mmio.STATE_CLOSED
    """As zapped, for ever."""
    FORKED = _mmio.STATE_FORKED
    """The window of the parent process, seen from a forked child: as closed."""


class WindowFlag(IntEnum):
    """Why a window is flagged: `Window.flag`. A revive clears it."""

    NONE = _mmio.FLAG_NONE
    """It is not."""
    TOUCHED = _mmio.FLAG_TOUCHED
    """A raw view was used while the memory was zapped, and saw all-ones."""
    BUS_ERROR = _mmio.FLAG_BUS_ERROR
    """The kernel answered an access to live memory with SIGBUS: decoding off, low power, or device gone."""


class ZapReason(IntEnum):
    """Why memory was taken away: the number given to `Window.zap`, and ``reason`` of the `ZappedError`."""

    NONE = _mmio.REASON_NONE
    """Not said."""
    RESET = _mmio.REASON_RESET
    """A function reset or hot reset is under way."""
    DISABLED = _mmio.REASON_DISABLED
    """Memory decoding is off (COMMAND.MEM=0), or low power: accessors raise `MemoryDisabledError`."""
    GONE = _mmio.REASON_GONE
    """The device does not answer any more: accessors raise `DeviceGoneError`."""
    CLOSE = _mmio.REASON_CLOSE
    """The device is being closed."""
    FAILED = _mmio.REASON_FAILED
    """A reset failed, so what state the device is in is unknown: it stays away until another one succeeds."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the regions of one device lie in its window."""

    size: int
    """Size of the window in bytes."""
    align: int
    """What the window's address must be a multiple of."""
    places: Mapping[int, int]
    """For each region's index its offset in the window, bytes."""


def layout(sizes: Mapping[int, int]) -> Layout:
    """Place regions in a window so that the kernel can map them with huge pages.

    A huge mapping needs address and offset in the region to agree modulo 2 MiB, or 1 GiB for the next size
    (``vm_operations_struct.huge_fault`` of ``drivers/vfio/pci/vfio_pci_core.c``). VFIO's regions begin at multiples of
    1 TiB in the device's file, so it is enough to align their first byte: regions from 1 GiB up to 1 GiB, from 2 MiB
    up to 2 MiB, smaller ones to a page. Large ones come first, so that little is lost between them.

    Args:
        sizes: for each region's index its size in bytes, above 0; rounded up to whole pages.

    Raises:
        ArgumentError: a size is not above 0.
    """
    wanted = []
    for index, size in sizes.items():
        if size <= 0:
            raise ArgumentError(
                f"region {index} has a size of {size}: only regions with memory have a place in a window"
            )
        wanted.append((_alignment(size), _round_up(size, mmap.PAGESIZE), index))
    places: dict[int, int] = {}
    end = 0
    for align, size, index in sorted(wanted, key=lambda each: (-each[0], -each[1], each[2])):
        places[index] = _round_up(end, align)
        end = places[index] + size
    align = max((align for align, _, _ in wanted), default=_PMD)
    return Layout(_round_up(max(end, 1), _PMD), max(align, _PMD), {index: places[index] for index in sizes})


def _alignment(size: int) -> int:
    if size >= _PUD:
        return _PUD
    return _PMD if size >= _PMD else mmap.PAGESIZE


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
