"""Channel I/O of s390x: subchannels, channel programs, and the devices behind them.

::

    channel = subchannel_of("0.0.0101")
    with lent(channel):
        instance = channel.create()
        with vfio_user.open_ccw(instance) as ccw:
            print(ccw.sense_id())
        instance.remove()
"""

from __future__ import annotations

from vfio_user.ccw.device import CCW_OPS, CcwDevice, ChannelProgramError
from vfio_user.ccw.program import Ccw, CcwFlag, ChannelProgram, Command, Orb
from vfio_user.ccw.status import (
    Activity,
    ChannelReport,
    ChannelStatus,
    DeviceStatus,
    Function,
    Irb,
    Schib,
    Scsw,
    SenseId,
    SenseReason,
    StatusControl,
)
from vfio_user.ccw.sysfs import Subchannel, subchannel, subchannel_of, subchannels

__all__ = [
    "CCW_OPS",
    "Activity",
    "Ccw",
    "CcwDevice",
    "CcwFlag",
    "ChannelProgram",
    "ChannelProgramError",
    "ChannelReport",
    "ChannelStatus",
    "Command",
    "DeviceStatus",
    "Function",
    "Irb",
    "Orb",
    "Schib",
    "Scsw",
    "SenseId",
    "SenseReason",
    "StatusControl",
    "Subchannel",
    "subchannel",
    "subchannel_of",
    "subchannels",
]
