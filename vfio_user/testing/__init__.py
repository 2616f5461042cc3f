"""QEMU guests with emulated devices, for tests of userspace drivers.

Outside: `run` boots a `Guest` and runs a command in it. Inside: `devices` and `device` tell where the
emulated devices are, `output` where to leave files, `qmp` and `hmp` speak to QEMU's monitor. The command
``vfio-user guest`` and the pytest plugin (`vfio_user.testing.plugin`) are made of these.
"""

from __future__ import annotations

from vfio_user.testing.errors import (
    GuestCrashedError,
    GuestError,
    GuestSetupError,
    GuestSpecError,
    GuestTimeoutError,
)
from vfio_user.testing.guest import Guest, run
from vfio_user.testing.inside import GuestDevice, NotInGuestError, device, devices, hmp, in_guest, output, qmp
from vfio_user.testing.monitor import Monitor, MonitorError
from vfio_user.testing.watch import Result

__all__ = [
    "Guest",
    "GuestCrashedError",
    "GuestDevice",
    "GuestError",
    "GuestSetupError",
    "GuestSpecError",
    "GuestTimeoutError",
    "Monitor",
    "MonitorError",
    "NotInGuestError",
    "Result",
    "device",
    "devices",
    "hmp",
    "in_guest",
    "output",
    "qmp",
    "run",
]
