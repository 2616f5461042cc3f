"""PCI devices: the function, its configuration space and its interrupts."""

from __future__ import annotations

from vfio_user.pci.config import CapabilityId, Command, ConfigSpace, ExtendedCapabilityId, Status
from vfio_user.pci.device import PCI_OPS, PciDevice, PciIrqs
from vfio_user.pci.devset import PciDeviceSet, hot_reset
from vfio_user.pci.plan import AffectedDevice, ResetPlan
from vfio_user.pci.report import ResetPhase, ResetReport

__all__ = [
    "PCI_OPS",
    "AffectedDevice",
    "CapabilityId",
    "Command",
    "ConfigSpace",
    "ExtendedCapabilityId",
    "PciDevice",
    "PciDeviceSet",
    "PciIrqs",
    "ResetPhase",
    "ResetPlan",
    "ResetReport",
    "Status",
    "hot_reset",
]
