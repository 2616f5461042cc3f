"""Several devices that reach each other's memory, stopped and started so that none meets another one stopped."""

from __future__ import annotations

from collections.abc import Iterable

from vfio_user.device.migration.migration import Migration
from vfio_user.kernel.uapi import MigrationFlags, MigrationState

__all__ = ["run_together", "stop_together"]


def stop_together(migrations: Iterable[Migration]) -> None:
    """Stop devices: first all stop reaching out (RUNNING_P2P, where they have it), then all stop.

    Raises:
        MigrationError: a step of one failed; says which. Those before it have made theirs.
    """
    _go(migrations, MigrationState.STOP)


def run_together(migrations: Iterable[Migration]) -> None:
    """Let devices run: first all answer (RUNNING_P2P, where they have it), then all run. Raises as `stop_together`."""
    _go(migrations, MigrationState.RUNNING)


def _go(migrations: Iterable[Migration], last: MigrationState) -> None:
    chosen = list(migrations)
    for each in chosen:
        if MigrationFlags.P2P in each.flags:
            each.set_state(MigrationState.RUNNING_P2P)
    for each in chosen:
        each.set_state(last)
