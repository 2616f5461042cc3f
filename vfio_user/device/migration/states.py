"""The state machine of migration: which state a device can go to next, on the way to another.

Source: ``vfio_mig_get_next_state()`` in ``drivers/vfio/vfio_main.c``, and the description in ``linux/vfio.h``.
"""

from __future__ import annotations

from collections import deque

from vfio_user.errors import ArgumentError, UnsupportedError
from vfio_user.kernel.uapi import MigrationFlags, MigrationState

__all__ = ["DATA_STATES", "arcs", "path", "required"]

_S = MigrationState
_F = MigrationFlags

DATA_STATES = frozenset({_S.STOP_COPY, _S.RESUMING, _S.PRE_COPY, _S.PRE_COPY_P2P})
"""The states in which there is a file for the device's data."""
_PRE_COPY = frozenset({_S.PRE_COPY, _S.PRE_COPY_P2P})

_NEEDS = {_S.RUNNING_P2P: _F.P2P, _S.PRE_COPY: _F.PRE_COPY, _S.PRE_COPY_P2P: _F.P2P | _F.PRE_COPY}

_ALWAYS = ((_S.STOP, _S.STOP_COPY), (_S.STOP_COPY, _S.STOP), (_S.STOP, _S.RESUMING), (_S.RESUMING, _S.STOP))
_WITHOUT_P2P = ((_S.RUNNING, _S.STOP), (_S.STOP, _S.RUNNING))
_P2P = (
    (_S.RUNNING, _S.RUNNING_P2P),
    (_S.RUNNING_P2P, _S.RUNNING),
    (_S.RUNNING_P2P, _S.STOP),
    (_S.STOP, _S.RUNNING_P2P),
)
_PRECOPY = ((_S.RUNNING, _S.PRE_COPY), (_S.PRE_COPY, _S.RUNNING))
_PRECOPY_WITHOUT_P2P = ((_S.PRE_COPY, _S.STOP_COPY),)
_PRECOPY_P2P = (
    (_S.PRE_COPY, _S.PRE_COPY_P2P),
    (_S.PRE_COPY_P2P, _S.PRE_COPY),
    (_S.RUNNING_P2P, _S.PRE_COPY_P2P),
    (_S.PRE_COPY_P2P, _S.RUNNING_P2P),
    (_S.PRE_COPY_P2P, _S.STOP_COPY),
)


def required(state: MigrationState) -> MigrationFlags:
    """Give the abilities that a device needs to be in a state."""
    return _NEEDS.get(state, _F(0))


def arcs(flags: MigrationFlags) -> tuple[tuple[MigrationState, MigrationState], ...]:
    """Give the single steps that a device with these abilities can make."""
    found = _ALWAYS + (_P2P if flags & _F.P2P else _WITHOUT_P2P)
    if flags & _F.PRE_COPY:
        found += _PRECOPY + (_PRECOPY_P2P if flags & _F.P2P else _PRECOPY_WITHOUT_P2P)
    return found


def path(current: MigrationState, target: MigrationState, flags: MigrationFlags) -> tuple[MigrationState, ...]:
    """Give the states that a device goes through to reach another, without the one that it is in.

    It is the shortest way that saves and restores nothing in between.

    Raises:
        UnsupportedError: the device has no such state.
        ArgumentError: there is no way.
    """
    if required(target) & ~flags:
        raise UnsupportedError(f"the device has no state {target.name}: it can do {flags!r}")
    if target is current:
        return ()
    if target is _S.ERROR or current is _S.ERROR:
        raise ArgumentError("nobody can ask for ERROR" if target is _S.ERROR else "only a reset leads out of ERROR")
    if current is _S.STOP_COPY and target in _PRE_COPY:
        raise ArgumentError(f"there is no way from STOP_COPY to {target.name}: go to RUNNING first")
    steps = arcs(flags)
    waiting: deque[tuple[MigrationState, ...]] = deque([(current,)])
    seen: set[MigrationState] = {current}
    while waiting:
        way = waiting.popleft()
        for start, end in steps:
            if start is not way[-1] or end in seen:
                continue
            if end is target:
                return (*way[1:], end)
            if end not in DATA_STATES or (current is _S.PRE_COPY and target is _S.STOP_COPY and end in _PRE_COPY):
                seen.add(end)
                waiting.append((*way, end))
    raise ArgumentError(f"there is no way from {current.name} to {target.name}")
