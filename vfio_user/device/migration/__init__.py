"""Migration, protocol 2: the states of a device, the stream of its data, and saving and loading as a whole."""

from __future__ import annotations

from vfio_user.device.migration.migration import Migration
from vfio_user.device.migration.states import path
from vfio_user.device.migration.stream import MigrationStream, PrecopyInfo
from vfio_user.device.migration.together import run_together, stop_together
from vfio_user.device.migration.transfer import all_first_read

__all__ = [
    "Migration",
    "MigrationStream",
    "PrecopyInfo",
    "all_first_read",
    "path",
    "run_together",
    "stop_together",
]
