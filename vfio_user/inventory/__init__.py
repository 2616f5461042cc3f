"""What PCI functions there are, and what is known of each; reads only."""

from __future__ import annotations

from vfio_user.inventory.details import Details, inspect
from vfio_user.inventory.facts import Bar, FunctionFacts, describe, survey
from vfio_user.inventory.filters import Filter
from vfio_user.inventory.readings import MapReading, read_registers

__all__ = [
    "Bar",
    "Details",
    "Filter",
    "FunctionFacts",
    "MapReading",
    "describe",
    "inspect",
    "read_registers",
    "survey",
]
