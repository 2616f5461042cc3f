"""Migration on a device that fails in every way: what is said, and in which state it is left."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import threading
import time

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.migration.conftest import FakeMigratable
from vfio_user import PciDevice
from vfio_user._uapi import lib
from vfio_user.device.migration import MigrationStream, PrecopyInfo, run_together, stop_together
from vfio_user.errors import (
    ArgumentError,
    ClosedError,
    MalformedReplyError,
    MigrationError,
    UnsupportedError,
    VfioOSError,
)
from vfio_user.kernel.uapi import MigrationFlags, MigrationState

S = MigrationState


def test_a_device_that_can_not(fake: FakeMigratable, pci: PciDevice) -> None:
    fake.abilities = 0
    with pytest.raises(UnsupportedError, match=f"{ADDRESS} has no feature MIGRATION"):
        pci.vdev.migration  # noqa: B018


def test_saving_and_loading_while_it_runs(fake: FakeMigratable, pci: PciDevice) -> None:
    fake.infos = [(len(fake.first), 0, 0), (0, 5 << 20, 0)]
    file, state = io.BytesIO(), fake.first + fake.rest
    migration = pci.vdev.migration
    with nothing_left():
        assert migration.save(file, tag="fake") == len(state)
        assert fake.steps == [S.PRE_COPY, S.PRE_COPY_P2P, S.STOP_COPY, S.STOP]
        assert fake.asked_v2
        file.write(b"what follows")
        file.seek(0)
        del fake.steps[:]
        assert migration.load(file, tag="fake") == len(state)
        assert fake.steps == [S.RESUMING, S.STOP, S.RUNNING_P2P, S.RUNNING]
        assert file.read() == b"what follows"


def test_saving_what_is_stopped(fake: FakeMigratable, pci: PciDevice) -> None:
    fake.state = S.STOP
    assert pci.vdev.migration.save(io.BytesIO()) == len(fake.rest)
    assert fake.steps == [S.STOP_COPY, S.STOP]
    fake.state = S.RUNNING
    del fake.steps[:]
    assert pci.vdev.migration.save(io.BytesIO(), precopy=False) == len(fake.rest)
    assert fake.steps == [S.RUNNING_P2P, S.STOP, S.STOP_COPY, S.STOP]


def test_saving_without_reaching_out(fake: FakeMigratable, pci: PciDevice) -> None:
    fake.state = S.RUNNING_P2P
    pci.vdev.migration.save(io.BytesIO())
    assert fake.steps == [S.PRE_COPY_P2P, S.STOP_COPY, S.STOP]


def test_older_kernels_say_less(fake: FakeMigratable, pci: PciDevice) -> None:
    fake.has_v2 = False
    fake.abilities = int(lib.VFIO_MIGRATION_STOP_COPY | lib.VFIO_MIGRATION_PRE_COPY)
    migration = pci.vdev.migration
    migration.save(io.BytesIO())
    assert fake.steps == [S.PRE_COPY, S.STOP_COPY, S.STOP]
    assert not fake.asked_v2
    with pytest.raises(UnsupportedError, match="no feature MIG_DATA_SIZE"):
        migration.data_size  # noqa: B018
    with pytest.raises(UnsupportedError, match="no state RUNNING_P2P"):
        migration.set_state(S.RUNNING_P2P)


def test_what_is_left(fake: FakeMigratable, pci: PciDevice) -> None:
    stream = pci.vdev.migration.set_state(S.PRE_COPY)
    assert stream is not None
    with stream:
        fake.infos = [(3, 4, int(lib.VFIO_PRECOPY_INFO_REINIT)), (3, 4, 0xF0)]
        assert stream.precopy_info() == PrecopyInfo(3, 4, reinitialized=True)
        with pytest.raises(MalformedReplyError, match="flags 0xf0 have no meaning"):
            stream.precopy_info()


def test_patience_with_a_device_that_never_has_little_left(fake: FakeMigratable, pci: PciDevice) -> None:
    fake.infos = [(0, 1 << 40, 0)] * 10_000
    pci.vdev.migration.save(io.BytesIO(), patience=0.05)
    assert fake.steps[-1] is S.STOP


class Full:
    """A sink that fails when it has taken so many pieces."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: bytes, /) -> int | None:
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        self.room -= 1
        return None


@pytest.mark.parametrize("before", [S.RUNNING, S.RUNNING_P2P, S.STOP])
@pytest.mark.parametrize("room", [0, 1, 2])
def test_sink_that_fails(fake: FakeMigratable, pci: PciDevice, room: int, before: MigrationState) -> None:
    fake.state = before
    fake.infos = [(1, 0, 0)] * 2
    with nothing_left(), pytest.raises(OSError, match="full"):
        pci.vdev.migration.save(Full(room))
    assert S(fake.state) is before, "it runs on as before"


def test_steps_that_fail(fake: FakeMigratable, pci: PciDevice) -> None:
    migration = pci.vdev.migration
    fake.refusals[S.STOP_COPY] = errno.EIO
    with nothing_left(), pytest.raises(MigrationError, match="did not go from PRE_COPY_P2P to STOP_COPY") as caught:
        migration.save(io.BytesIO())
    assert caught.value.state == "PRE_COPY_P2P", "at the time"
    assert S(fake.state) is S.RUNNING
    fake.falls_to = int(S.ERROR)
    with pytest.raises(MigrationError, match="in state ERROR now: only a reset leads out of it") as caught:
        migration.save(io.BytesIO())
    assert caught.value.state == "ERROR"
    assert "could not be put back" in caught.value.__notes__[0]
    with pytest.raises(ArgumentError, match="only a reset leads out of ERROR"):
        migration.set_state(S.RUNNING)


def test_replies_that_make_no_sense(fake: FakeMigratable, pci: PciDevice) -> None:
    migration = pci.vdev.migration
    fake.gives_stream = False
    with pytest.raises(MalformedReplyError, match="went to RESUMING, and gave no stream"):
        migration.set_state(S.RESUMING)
    fake.state = 99
    with pytest.raises(MalformedReplyError, match="state 99, which has no name"):
        migration.state  # noqa: B018
    fake.state, fake.refusals[S.RUNNING_P2P] = int(S.RUNNING), errno.EIO
    fake.falls_to = 99
    with pytest.raises(MigrationError, match="its state is not known") as caught:
        migration.set_state(S.STOP)
    assert caught.value.state == ""


def saved(pci: PciDevice, tag: str = "") -> bytes:
    file = io.BytesIO()
    pci.vdev.migration.save(file, tag=tag)
    pci.vdev.migration.set_state(S.RUNNING)
    return file.getvalue()


def test_states_that_are_not_loaded(fake: FakeMigratable, pci: PciDevice) -> None:
    whole = saved(pci, "fake")
    migration = pci.vdev.migration
    del fake.steps[:]
    for data, tag, words in (
        (b"", "fake", "the state ends before its end"),
        (b"GIF89a" + whole, "fake", "no state that was saved by this version"),
        (whole, "other", "tagged 'fake', and is to be of 'other'"),
    ):
        with nothing_left(), pytest.raises(MigrationError, match=words) as caught:
            migration.load(io.BytesIO(data), tag=tag)
        assert caught.value.state == "RUNNING", "not touched"
    assert fake.steps == []
    fake.abilities = int(MigrationFlags.STOP_COPY)
    with pytest.raises(UnsupportedError):
        pci.vdev.migration.load(io.BytesIO(whole), tag="fake", then=S.PRE_COPY)
    fake.abilities = int(migration.flags)
    for damaged in (whole[:-1], whole[:-1] + b"?"):
        with nothing_left(), pytest.raises(MigrationError, match="in state RESUMING now: a reset lets it run"):
            migration.load(io.BytesIO(damaged), tag="fake")
        assert S(fake.state) is S.RESUMING
        fake.state = int(S.RUNNING)


def test_driver_that_does_not_take_it(fake: FakeMigratable, pci: PciDevice) -> None:
    whole = saved(pci)
    fake.state = int(S.STOP)
    fake.refusals[S.STOP] = errno.EINVAL
    with nothing_left(), pytest.raises(MigrationError, match=r"did not go from RESUMING to STOP .*EINVAL") as caught:
        pci.vdev.migration.load(io.BytesIO(whole))
    assert caught.value.state == "RESUMING"


def test_stream_that_refuses() -> None:
    with nothing_left(), MigrationStream(os.open("/dev/full", os.O_WRONLY), ADDRESS) as stream:
        with pytest.raises(VfioOSError, match=rf"write byte 0 and following of 4 to .* {ADDRESS}: .*ENOSPC"):
            stream.write(b"data")
        with pytest.raises(VfioOSError, match="read migration data"):
            stream.read()
        with pytest.raises(UnsupportedError, match="nothing to say of what is left"):
            stream.precopy_info()
    stream.close()
    assert stream.closed
    with pytest.raises(ClosedError):
        stream.read()


def test_asyncio(fake: FakeMigratable, pci: PciDevice) -> None:
    migration = pci.vdev.migration

    async def through_a_socket() -> tuple[int, int]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                done.set_result(await migration.load_async(reader, then=S.STOP))
            except Exception as error:
                done.set_exception(error)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            buffer = io.BytesIO()
            sent = migration.save(buffer)
            writer.write(buffer.getvalue())
            await writer.drain()
            received = await done
            writer.close()
        return sent, received

    sent, received = asyncio.run(through_a_socket())
    assert sent == received == len(fake.first + fake.rest)
    assert S(fake.state) is S.STOP


class Stuck(asyncio.StreamWriter):
    """A stream that takes nothing, or takes it all."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def write(self, data: object) -> None:
        pass

    async def drain(self) -> None:
        await asyncio.sleep(self.seconds)

    def __del__(self, warnings: object = None) -> None:
        pass


@pytest.mark.parametrize("seconds", [0, 3600])
def test_asyncio_saving_that_is_cancelled(fake: FakeMigratable, pci: PciDevice, seconds: float) -> None:
    fake.infos = [(0, 1 << 40, 0)] * 100_000
    migration = pci.vdev.migration

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await migration.save_async(Stuck(seconds))

    with nothing_left():
        asyncio.run(give_up())
    assert S(fake.state) is S.RUNNING


def test_cancelled_in_the_middle_of_a_call(fake: FakeMigratable, pci: PciDevice) -> None:
    left = threading.Event()

    def slow(info: PrecopyInfo) -> bool:
        time.sleep(0.3)
        left.set()
        return False

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pci.vdev.migration.save_async(Stuck(0), until=slow)
        assert left.is_set(), "the call has come back before the device was put back"

    with nothing_left():
        asyncio.run(give_up())
    assert S(fake.state) is S.RUNNING


@pytest.mark.parametrize("state", [S.PRE_COPY, S.STOP_COPY, S.RESUMING])
def test_somebody_else_is_at_it(fake: FakeMigratable, pci: PciDevice, state: MigrationState) -> None:
    fake.state = int(state)
    with pytest.raises(MigrationError, match=f"is in state {state.name}: somebody saves or loads it now"):
        pci.vdev.migration.save(io.BytesIO())
    assert S(fake.state) is state
    assert fake.steps == []


class Broken:
    """A source that fails after a while."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        data = self.file.read(size)
        if not data:
            raise OSError(errno.EIO, "broken")
        return data


def test_source_that_fails(fake: FakeMigratable, pci: PciDevice) -> None:
    with nothing_left(), pytest.raises(OSError, match="broken") as caught:
        pci.vdev.migration.load(Broken(saved(pci)[:-5]))
    assert caught.value.__notes__ == [
        f"{ADDRESS} was not loaded; it is in state RESUMING now: a reset lets it run again, with nothing loaded"
    ]


def test_several_together(fake: FakeMigratable, pci: PciDevice) -> None:
    migration = pci.vdev.migration
    stop_together([migration, migration])
    assert fake.steps == [S.RUNNING_P2P, S.STOP]
    del fake.steps[:]
    run_together([migration])
    assert fake.steps == [S.RUNNING_P2P, S.RUNNING]
