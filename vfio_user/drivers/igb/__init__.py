"""Intel 82576 network controllers (igb) in user space (Intel 82576 GbE Controller Datasheet).

`Igb` (port.py) sends and receives frames on `IgbQueue`s (queue.py, rings in rings.py); `IgbCopyEngine` (copy.py) uses
the loopback to copy memory. Both have their life from adapter.py and their register sequences from control.py;
registers.py and regs.py have the registers and their bits.
"""

from __future__ import annotations

from vfio_user.drivers.igb.copy import IgbCopyEngine
from vfio_user.drivers.igb.errors import IgbDeadlineError, IgbError, IgbNotRunningError
from vfio_user.drivers.igb.port import Igb
from vfio_user.drivers.igb.queue import IgbQueue
from vfio_user.drivers.igb.statistics import PortStatistics

__all__ = [
    "Igb",
    "IgbCopyEngine",
    "IgbDeadlineError",
    "IgbError",
    "IgbNotRunningError",
    "IgbQueue",
    "PortStatistics",
]
