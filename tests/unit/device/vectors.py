"""Vectors without a device: who interrupts, and what a poller gave."""

from __future__ import annotations

import os
from typing import cast

from vfio_user import IrqVector

__all__ = ["by_vector", "ring"]


def ring(vector: IrqVector, count: int = 1) -> None:
    """Do what the kernel does when the device interrupts."""
    os.eventfd_write(vector.fileno(), count)


def by_vector(counts: object) -> dict[IrqVector, int]:
    """Make a table of what a poller gave; none comes twice."""
    found = dict(cast("list[tuple[IrqVector, int]]", counts))
    assert len(found) == len(cast("list[object]", counts))
    return found
