"""Open devices in one process and drive them in another: a broker with privilege, drivers without.

`borrow` gets devices from a `Broker` (``vfio-user broker``), which opens them and passes the files. Both ways to a
device can be passed: group with container, and the device's own node with an iommufd.
"""

from __future__ import annotations

from vfio_user.handover.broker import Broker
from vfio_user.handover.lease import Lease, borrow
from vfio_user.handover.parcel import Parcel, ParcelDevice, pack, unpack
from vfio_user.handover.policy import Grant, Policy
from vfio_user.handover.reexec import Carried, Resumed, carry, resume
from vfio_user.handover.sockets import SOCKET, inherited, listen

__all__ = [
    "SOCKET",
    "Broker",
    "Carried",
    "Grant",
    "Lease",
    "Parcel",
    "ParcelDevice",
    "Policy",
    "Resumed",
    "borrow",
    "carry",
    "inherited",
    "listen",
    "pack",
    "resume",
    "unpack",
]
