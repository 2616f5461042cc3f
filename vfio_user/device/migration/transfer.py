"""Saving and loading a state as steps, without saying how its bytes travel: blocking and asyncio code share these."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from vfio_user.device.migration.states import DATA_STATES, path
from vfio_user.device.migration.stream import MigrationStream, PrecopyInfo
from vfio_user.device.migration.wire import PIECE, Packer, unpack
from vfio_user.errors import MigrationError, VfioError
from vfio_user.kernel.uapi import MigrationFlags, MigrationState

if TYPE_CHECKING:
    from vfio_user.device.migration.migration import Migration

__all__ = ["NAP", "all_first_read", "in_thread", "loading", "saving", "send", "whole"]

_RUNNING = (MigrationState.RUNNING, MigrationState.RUNNING_P2P)
_LITTLE = 1 << 20
NAP = 0.01
"""Seconds to wait for a running device that has nothing to give for now."""

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


def all_first_read(info: PrecopyInfo) -> bool:
    """Tell whether all that is to be moved first was, and little has changed since: 1 MiB at most."""
    return info.initial_bytes == 0 and info.dirty_bytes <= _LITTLE


def saving(
    migration: Migration, packer: Packer, tag: str, precopy: bool, until: Callable[[PrecopyInfo], bool], patience: float
) -> Generator[bytes, None, None]:
    """Give what is to be sent, piece by piece; an empty piece means that there is nothing for now.

    See `Migration.save`. Puts nothing back when it is given up.
    """
    state = migration.state
    if state in DATA_STATES:
        raise MigrationError(f"{migration.name} is in state {state.name}: somebody saves or loads it now", state.name)
    yield packer.head(tag)
    running = precopy and state in _RUNNING and MigrationFlags.PRE_COPY in migration.flags
    if running:
        migration.ask_for_precopy_flags()
        p2p = state is MigrationState.RUNNING_P2P
        stream = migration.set_state(MigrationState.PRE_COPY_P2P if p2p else MigrationState.PRE_COPY)
    else:
        stream = migration.set_state(MigrationState.STOP_COPY)
    assert stream is not None, "it was in no state that has a stream already"
    with stream:
        if running:
            for data in _while_running(stream, until, patience):
                yield packer.piece(data) if data else b""
            migration.set_state(MigrationState.STOP_COPY)
        while data := stream.read(PIECE):
            yield packer.piece(data)
    migration.set_state(MigrationState.STOP)
    yield packer.end()


def _while_running(stream: MigrationStream, until: Callable[[PrecopyInfo], bool], patience: float) -> Iterator[bytes]:
    deadline = time.monotonic() + patience
    while not until(stream.precopy_info()) and time.monotonic() < deadline:
        yield stream.read(PIECE)


def loading(migration: Migration, tag: str, then: MigrationState) -> Generator[int, bytes, int]:
    """Yield how many bytes are wanted next, and be sent exactly those; see `Migration.load`. Gives their number."""
    path(MigrationState.RESUMING, then, migration.flags)  # refused before anything is touched
    opened: list[MigrationStream] = []

    def begin() -> None:
        stream = migration.set_state(MigrationState.RESUMING)
        if stream is None:
            raise MigrationError("somebody else is loading it")
        opened.append(stream)

    def take(piece: bytes) -> None:
        try:
            opened[0].write(piece)
        except VfioError as error:
            raise MigrationError(str(error)) from error

    try:
        total = yield from unpack(tag, begin, take)
        migration.set_state(then)
    finally:
        for stream in opened:
            stream.close()
    return total


def whole(data: bytes, wanted: int) -> bytes:
    """Give the bytes that came, which are to be as many as were wanted.

    Raises:
        MigrationError: they are fewer.
    """
    if len(data) != wanted:
        raise MigrationError(f"the state ends before its end: {len(data)} bytes came where {wanted} were to")
    return data


def send(steps: Generator[int, bytes, int], data: bytes) -> tuple[bool, int]:
    """Take one step of `loading`: `False` and what it wants next, or `True` and what it gives.

    A generator's own way to say that it is done, StopIteration, can't come out of a thread.
    """
    try:
        return False, steps.send(data)
    except StopIteration as end:
        return True, int(end.value)


async def in_thread(
    function: Callable[ParametersT, ResultT], *args: ParametersT.args, **kwargs: ParametersT.kwargs
) -> ResultT:
    """Call a function in a thread; who is cancelled meanwhile goes when it has come back, and leaves nothing behind."""
    import asyncio

    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        if call.done() and not call.cancelled():
            call.exception()  # looked at: nobody is to be told that nobody did
        raise
