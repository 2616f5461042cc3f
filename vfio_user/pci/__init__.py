"""PCI devices: the function, its configuration space and its interrupts."""

from __future__ import annotations

from vfio_user.pci.config import CapabilityId, Command, ConfigSpace, ExtendedCapabilityId, Status
from vfio_user.pci.device import PCI_OPS, PciDevice, PciIrqs

__all__ = [
    "PCI_OPS",
    "CapabilityId",
    "Command",
    "ConfigSpace",
    "ExtendedCapabilityId",
    "PciDevice",
    "PciIrqs",
    "Status",
]
