"""The bus-neutral device: regions, interrupts, life cycle, and how it is embedded in a bus's device."""

from __future__ import annotations

from vfio_user.device.base import DeviceState, VfioDevice, open_devices
from vfio_user.device.bus import BusDevice
from vfio_user.device.devset import DeviceSet
from vfio_user.device.embed import Embedded, container_of
from vfio_user.device.events import DeviceEvent, DeviceEvents, EventKind
from vfio_user.device.health import DeviceHealth
from vfio_user.device.irq import IrqIndex, IrqVectors, ResampleEvent
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.device.p2p import PeerMapping
from vfio_user.device.poller import IrqPoller
from vfio_user.device.region import Region
from vfio_user.device.vector import IrqVector

__all__ = [
    "CORE_OPS",
    "BusDevice",
    "DeviceEvent",
    "DeviceEvents",
    "DeviceHealth",
    "DeviceOps",
    "DeviceSet",
    "DeviceState",
    "Embedded",
    "EventKind",
    "IrqIndex",
    "IrqPoller",
    "IrqVector",
    "IrqVectors",
    "PeerMapping",
    "Region",
    "ResampleEvent",
    "VfioDevice",
    "container_of",
    "open_devices",
]
