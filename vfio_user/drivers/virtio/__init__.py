"""Virtio devices in user space (virtio 1.2).

`SplitQueue` (queue.py, its places in memory in layout.py) is the driver's side of a split virtqueue, and depends on no
transport.
"""

from __future__ import annotations

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
from vfio_user.drivers.virtio.layout import QueueLayout
from vfio_user.drivers.virtio.queue import Segment, SplitQueue

__all__ = [
    "QueueLayout",
    "Segment",
    "SplitQueue",
    "VirtioAbortedError",
    "VirtioDeadlineError",
    "VirtioError",
    "VirtioNeedsResetError",
    "VirtioNotRunningError",
    "VirtioQueueFullError",
    "VirtioRingError",
    "VirtioStatusError",
    "VirtioUnsupportedError",
]
