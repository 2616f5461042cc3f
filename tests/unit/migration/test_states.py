"""The state machine of migration, against what the kernel describes."""

from __future__ import annotations

import itertools

import pytest

from vfio_user.device.migration import path
from vfio_user.device.migration.states import DATA_STATES, arcs, required
from vfio_user.errors import ArgumentError, UnsupportedError
from vfio_user.kernel.uapi import MigrationFlags, MigrationState

ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
PLAIN = MigrationFlags.STOP_COPY
COMBINATIONS = [PLAIN, PLAIN | MigrationFlags.P2P, PLAIN | MigrationFlags.PRE_COPY, ALL]
REAL = [each for each in MigrationState if each is not MigrationState.ERROR]

# What the kernel says of a device that can do all, in Documentation and in the comment of vfio_mig_get_next_state().
WAYS = """
PRE_COPY PRE_COPY_P2P STOP_COPY
PRE_COPY RUNNING RUNNING_P2P
PRE_COPY RUNNING RUNNING_P2P STOP
PRE_COPY RUNNING RUNNING_P2P STOP RESUMING
PRE_COPY_P2P RUNNING_P2P RUNNING
PRE_COPY_P2P RUNNING_P2P STOP
PRE_COPY_P2P RUNNING_P2P STOP RESUMING
RESUMING STOP RUNNING_P2P
RESUMING STOP RUNNING_P2P PRE_COPY_P2P
RESUMING STOP RUNNING_P2P RUNNING
RESUMING STOP RUNNING_P2P RUNNING PRE_COPY
RESUMING STOP STOP_COPY
RUNNING RUNNING_P2P PRE_COPY_P2P
RUNNING RUNNING_P2P STOP
RUNNING RUNNING_P2P STOP RESUMING
RUNNING RUNNING_P2P STOP STOP_COPY
RUNNING_P2P RUNNING PRE_COPY
RUNNING_P2P STOP RESUMING
RUNNING_P2P STOP STOP_COPY
STOP RUNNING_P2P PRE_COPY_P2P
STOP RUNNING_P2P RUNNING
STOP RUNNING_P2P RUNNING PRE_COPY
STOP_COPY STOP RESUMING
STOP_COPY STOP RUNNING_P2P
STOP_COPY STOP RUNNING_P2P RUNNING
"""


@pytest.mark.parametrize("way", WAYS.strip().splitlines())
def test_ways_that_the_kernel_names(way: str) -> None:
    states = [MigrationState[name] for name in way.split()]
    assert path(states[0], states[-1], ALL) == tuple(states[1:])


@pytest.mark.parametrize("flags", COMBINATIONS)
def test_every_way_is_made_of_arcs(flags: MigrationFlags) -> None:
    there = [each for each in REAL if not required(each) & ~flags]
    for start, target in itertools.product(there, there):
        if start is MigrationState.STOP_COPY and target in (MigrationState.PRE_COPY, MigrationState.PRE_COPY_P2P):
            with pytest.raises(ArgumentError, match=f"no way from STOP_COPY to {target.name}: go to RUNNING first"):
                path(start, target, flags)
            continue
        way = (start, *path(start, target, flags))
        assert way[-1] is target
        assert set(itertools.pairwise(way)) <= set(arcs(flags))
        assert len(set(way)) == len(way)
        through = set(way[1:-1]) & DATA_STATES
        assert not through or (start, through, target) == (
            MigrationState.PRE_COPY,
            {MigrationState.PRE_COPY_P2P},
            MigrationState.STOP_COPY,
        )


def test_states_that_a_device_lacks() -> None:
    for state in (MigrationState.RUNNING_P2P, MigrationState.PRE_COPY, MigrationState.PRE_COPY_P2P):
        with pytest.raises(UnsupportedError, match=f"no state {state.name}"):
            path(MigrationState.RUNNING, state, PLAIN)
    assert path(MigrationState.RUNNING, MigrationState.STOP_COPY, PLAIN) == (
        MigrationState.STOP,
        MigrationState.STOP_COPY,
    )


def test_no_way_in_or_out_of_error() -> None:
    with pytest.raises(ArgumentError, match="only a reset leads out of ERROR"):
        path(MigrationState.ERROR, MigrationState.RUNNING, ALL)
    with pytest.raises(ArgumentError, match="nobody can ask for ERROR"):
        path(MigrationState.RUNNING, MigrationState.ERROR, ALL)
