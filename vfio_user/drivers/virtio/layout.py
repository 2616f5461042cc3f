"""How a split virtqueue lies in memory (virtio 1.2, 2.7)."""

from __future__ import annotations

import enum

from vfio_user.errors import BoundsError

__all__ = ["DESCRIPTOR_SIZE", "MAX_QUEUE_SIZE", "DescriptorFlag", "QueueLayout"]

DESCRIPTOR_SIZE = 16
"""Bytes of a descriptor: address, length, flags, next (2.7.5)."""
MAX_QUEUE_SIZE = 1 << 15
"""Most descriptors of a queue (2.7)."""

_RING_HEAD = 4  # flags and index, of either ring
_USED_ELEMENT = 8
_EVENT = 2  # used_event behind the one ring, avail_event behind the other


class DescriptorFlag(enum.IntFlag):
    """Flags of a descriptor (2.7.5)."""

    NEXT = 1
    """The chain goes on at ``next``."""
    WRITE = 2
    """The device writes to this memory; without it, it reads."""
    INDIRECT = 4
    """The memory holds a table of descriptors (2.7.5.3)."""


class QueueLayout:
    """Where the parts of a queue are, in bytes from the start of its memory.

    Lifetime:
        A value; nothing to close.
    Locking:
        Fixed when it is made.
    """

    __slots__ = ("available", "descriptors", "num_bytes", "size", "table_entries", "tables", "used")

    def __init__(self, size: int, table_entries: int = 0) -> None:
        """Lay out a queue.

        Args:
            size: descriptors: a power of two, 1 to `MAX_QUEUE_SIZE`.
            table_entries: descriptors of the indirect table of each chain; 0 for none.

        Raises:
            BoundsError: a size that no queue can have.
        """
        if not 1 <= size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise BoundsError(f"a virtqueue of {size} descriptors: give a power of two from 1 to {MAX_QUEUE_SIZE}")
        if not 0 <= table_entries <= size:
            raise BoundsError(f"indirect tables of {table_entries} descriptors: give 0 to {size}, the queue's size")
        self.size = size
        """Descriptors of the queue, and entries of both rings."""
        self.table_entries = table_entries
        """Descriptors of each indirect table."""
        self.descriptors = 0
        """The descriptor table, aligned to 16."""
        self.available = size * DESCRIPTOR_SIZE
        """The available ring, aligned to 2."""
        used = self.available + _RING_HEAD + 2 * size + _EVENT
        self.used = -(-used // 4) * 4
        """The used ring, aligned to 4."""
        tables = self.used + _RING_HEAD + _USED_ELEMENT * size + _EVENT
        self.tables = -(-tables // DESCRIPTOR_SIZE) * DESCRIPTOR_SIZE
        """The indirect tables, one for each descriptor, aligned to 16."""
        self.num_bytes = self.tables + size * table_entries * DESCRIPTOR_SIZE
        """Bytes of all of it."""
