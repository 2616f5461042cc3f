"""Physical Region Pages: how a command tells the controller where its data lies (NVMe Base 2.0, 4.1.1).

A command has two PRP fields. The first may start anywhere in a page (at a multiple of 4 bytes); every further
page is named whole. With more than two pages the second field points to a *list* of pages, and a list that
does not fit the rest of its own page ends with a pointer to the next piece. All of it is arithmetic on IOVAs;
nothing here touches memory.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vfio_user.errors import AlignmentError, BoundsError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PRP_SIZE", "PrpFields", "list_stride", "max_list_pages", "prp_fields", "prp_pages"]

PRP_SIZE = 8
"""Bytes of one PRP entry."""


class PrpFields(NamedTuple):
    """What goes into a command, and what must be written to the memory of its PRP list first."""

    prp1: int
    """PRP entry 1."""
    prp2: int
    """PRP entry 2: 0, the second page, or the IOVA of the list."""
    list_bytes: bytes
    """What to write to the start of the list's memory; empty when no list is needed."""


def prp_pages(segments: Sequence[tuple[int, int]], page_size: int) -> list[int]:
    """Name the pages of a transfer, the first with its offset.

    Args:
        segments: ``(iova, size)`` in the order of the data. Only the first may start inside of a page, and
            only the last may end inside of one; the first is at a multiple of 4 bytes.
        page_size: CC.MPS in bytes.

    Raises:
        BoundsError: a segment is empty, or there is none.
        AlignmentError: a segment starts or ends where PRPs can't express it.
    """
    if not segments:
        raise BoundsError("a transfer of no memory at all: give one segment at least")
    mask = page_size - 1
    pages: list[int] = []
    last = len(segments) - 1
    for index, (iova, size) in enumerate(segments):
        if size <= 0 or iova < 0 or iova + size > 1 << 64:
            raise BoundsError(f"segment {index}: {size} bytes at IOVA {iova:#x} is empty or outside of 64 bits")
        if iova & (mask if index else 3):
            need = f"a multiple of the page size {page_size}" if index else "a multiple of 4 bytes"
            raise AlignmentError(f"segment {index} starts at IOVA {iova:#x}, which must be {need}")
        if index != last and (iova + size) & mask:
            raise AlignmentError(f"segment {index} ends inside of a page, at IOVA {iova + size:#x}; only the last may")
        pages.append(iova)
        pages.extend(range((iova & ~mask) + page_size, iova + size, page_size))
    return pages


def prp_fields(pages: Sequence[int], list_iova: int, list_size: int, page_size: int) -> PrpFields:
    """Lay out the PRP entries of a command.

    Args:
        pages: what `prp_pages` returned.
        list_iova: IOVA of memory for the list, a multiple of 8; used only for more than two pages.
        list_size: bytes of that memory.
        page_size: CC.MPS in bytes.

    Raises:
        AlignmentError: ``list_iova`` is not a multiple of 8.
        BoundsError: the list does not fit ``list_size``.
    """
    if len(pages) == 1:
        return PrpFields(pages[0], 0, b"")
    if len(pages) == 2:
        return PrpFields(pages[0], pages[1], b"")
    if list_iova % PRP_SIZE:
        raise AlignmentError(f"PRP list at IOVA {list_iova:#x}, which must be a multiple of {PRP_SIZE}")
    entries = _chain(pages[1:], list_iova, page_size)
    if len(entries) * PRP_SIZE > list_size:
        raise BoundsError(f"{len(pages)} pages need {len(entries) * PRP_SIZE} bytes of PRP list, there are {list_size}")
    return PrpFields(pages[0], list_iova, struct.pack(f"<{len(entries)}Q", *entries))


def _chain(rest: Sequence[int], list_iova: int, page_size: int) -> Sequence[int]:
    # The last entry of a page of the list points to the list's next page, unless the list ends there.
    room = (page_size - list_iova % page_size) // PRP_SIZE
    if len(rest) <= room:
        return rest
    entries: list[int] = []
    start = 0
    while len(rest) - start > room:
        entries.extend(rest[start : start + room - 1])
        start += room - 1
        # Each piece goes on at the next page boundary, directly behind this one.
        entries.append(list_iova + (len(entries) + 1) * PRP_SIZE)
        room = page_size // PRP_SIZE
    entries.extend(rest[start:])
    return entries


def max_list_pages(max_transfer: int, page_size: int) -> int:
    """Tell how many pages a transfer of ``max_transfer`` bytes names beside PRP entry 1, at worst."""
    return -(-max_transfer // page_size)


def list_stride(max_transfer: int, page_size: int) -> int:
    """Tell how many bytes to keep for the PRP list of one command of at most ``max_transfer`` bytes.

    A power of two up to a page, then whole pages, so that lists carved out one after the other never cross
    a page where they should not.
    """
    needed = max_list_pages(max_transfer, page_size)
    if needed * PRP_SIZE <= page_size:
        return max(PRP_SIZE, 1 << (needed * PRP_SIZE - 1).bit_length())
    per_page = page_size // PRP_SIZE - 1
    return -(-(needed - 1) // per_page) * page_size
