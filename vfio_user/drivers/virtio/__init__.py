"""Virtio devices in user space (virtio 1.2).

`SplitQueue` (queue.py, its places in memory in layout.py) is the driver's side of a split virtqueue, and depends on no
transport. For PCI, `VirtioBlk`, `VirtioNet` and `VirtioRng` (blk.py, net.py, rng.py) have their life from device.py,
which uses the registers of transport.py; threads share their queues by service.py.
"""

from __future__ import annotations

from vfio_user.drivers.virtio.blk import BlkFeature, VirtioBlk
from vfio_user.drivers.virtio.device import VirtioDevice
from vfio_user.drivers.virtio.errors import (
    VirtioAbortedError,
    VirtioDeadlineError,
    VirtioError,
    VirtioNeedsResetError,
    VirtioNotRunningError,
    VirtioQueueFullError,
    VirtioRingError,
    VirtioStatusError,
    VirtioUnsupportedError,
)
from vfio_user.drivers.virtio.features import DeviceStatus, Feature
from vfio_user.drivers.virtio.layout import QueueLayout
from vfio_user.drivers.virtio.net import NetFeature, VirtioNet
from vfio_user.drivers.virtio.queue import Segment, SplitQueue
from vfio_user.drivers.virtio.request import Request
from vfio_user.drivers.virtio.rng import VirtioRng
from vfio_user.drivers.virtio.transport import PciTransport

__all__ = [
    "BlkFeature",
    "DeviceStatus",
    "Feature",
    "NetFeature",
    "PciTransport",
    "QueueLayout",
    "Request",
    "Segment",
    "SplitQueue",
    "VirtioAbortedError",
    "VirtioBlk",
    "VirtioDeadlineError",
    "VirtioDevice",
    "VirtioError",
    "VirtioNeedsResetError",
    "VirtioNet",
    "VirtioNotRunningError",
    "VirtioQueueFullError",
    "VirtioRingError",
    "VirtioRng",
    "VirtioStatusError",
    "VirtioUnsupportedError",
]
