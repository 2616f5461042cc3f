"""Migration on the kernel's mtty sample: from one instance to another, with its registers and its FIFO."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import MdevDevice, testing
from vfio_user.addresses import IovaRange
from vfio_user.device.dma_log import DmaLog
from vfio_user.device.migration import Migration, MigrationStream, PrecopyInfo, path, run_together, stop_together
from vfio_user.drivers.mtty import InterruptEnable, LineControl, ModemControl, Mtty, SerialPort, SerialState
from vfio_user.errors import ArgumentError, MigrationError, UnsupportedError, VfioIoctlError, VfioOSError
from vfio_user.kernel.uapi import DeviceFeature, MigrationFlags, MigrationState
from vfio_user.mdev import Mdev, mdev_parent

S = MigrationState
SIZE = 96
"""Bytes of the state of an mtty with two ports; the first 24 are a head that is there before it stops."""
TEXT = b"in the FIFO"


@pytest.fixture(scope="module")
def instances() -> Iterator[tuple[Mdev, Mdev]]:
    kind = mdev_parent("mtty").type("mtty-2")
    made = (kind.create(), kind.create())
    yield made
    for each in made:
        each.remove()


@pytest.fixture
def source(instances: tuple[Mdev, Mdev]) -> Iterator[MdevDevice]:
    with nothing_left(), vfio_user.open_mdev(instances[0]) as device:
        yield device
        device.reset()
        for port in filled(device):
            port.configure()


@pytest.fixture
def target(instances: tuple[Mdev, Mdev]) -> Iterator[MdevDevice]:
    with vfio_user.open_mdev(instances[1]) as device:
        yield device
        device.reset()


def filled(device: MdevDevice) -> tuple[SerialPort, ...]:
    """Give the ports of a device that no driver has, to look at them without touching interrupts."""
    driver = Mtty(device)
    return tuple(SerialPort(driver, number, device.pci.bar(number)) for number in (0, 1))


def fill(device: MdevDevice) -> None:
    first, second = filled(device)
    first.configure(9600, LineControl.BITS_8 | LineControl.TWO_STOP)
    first.set_modem(ModemControl.DTR)
    first.set_scratch(0xA5)
    first.write(TEXT)
    second.set_scratch(0x5A)


def check(device: MdevDevice) -> None:
    with Mtty(device) as mtty:
        first, second = mtty.ports
        assert first.state == SerialState(
            InterruptEnable.DATA, LineControl.BITS_8 | LineControl.TWO_STOP, ModemControl.DTR, 0xA5
        )
        assert second.state.scratch == 0x5A
        assert first.read(len(TEXT)) == TEXT
        assert first.read_available() == second.read_available() == b""


def stream_of(migration: Migration, state: MigrationState) -> MigrationStream:
    stream = migration.set_state(state)
    assert stream is not None
    return stream


def test_what_it_can_do(source: MdevDevice) -> None:
    migration = source.vdev.migration
    assert migration.flags == MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
    assert migration.state is S.RUNNING
    assert migration.data_size == SIZE
    with vfio_user.open(testing.device("edu").address) as pci, pytest.raises(UnsupportedError, match="MIGRATION"):
        pci.vdev.migration  # noqa: B018


def test_every_way_is_the_kernels_own(source: MdevDevice) -> None:
    """From every state to every other: allowed or refused as the kernel does, asked in one step."""
    migration = source.vdev.migration
    real = [each for each in S if each is not S.ERROR]
    for start, end in itertools.product(real, real):
        source.reset()
        opened = [migration.set_state(start)]
        assert migration.state is start
        try:
            way = path(start, end, migration.flags)
        except ArgumentError:
            with pytest.raises(VfioIoctlError) as caught:
                source.vdev.features.set(
                    DeviceFeature.MIG_DEVICE_STATE,
                    "struct vfio_device_feature_mig_state",
                    device_state=int(end),
                    data_fd=-1,
                )
            assert caught.value.errno == errno.EINVAL
        else:
            if start is not S.RESUMING or end is S.RESUMING:  # nothing was loaded that could be left with
                opened.append(migration.set_state(end))
                assert migration.state is (way[-1] if way else start)
        for stream in opened:
            if stream is not None:
                stream.close()


def test_by_hand(source: MdevDevice, target: MdevDevice) -> None:
    fill(source)
    with stream_of(source.vdev.migration, S.STOP_COPY) as stream:
        data = b"".join(iter(lambda: stream.read(10), b""))
        assert stream.read() == b""
    assert len(data) == SIZE
    with stream_of(target.vdev.migration, S.RESUMING) as stream:
        assert stream.write(data) == SIZE
    target.vdev.migration.set_state(S.RUNNING)
    check(target)


def test_through_a_file(source: MdevDevice, target: MdevDevice, tmp_path: Path) -> None:
    fill(source)
    with (tmp_path / "state").open("wb") as file:
        assert source.vdev.migration.save(file, tag="mtty-2") == SIZE
    assert source.vdev.migration.state is S.STOP
    with (tmp_path / "state").open("rb") as file:
        assert target.vdev.migration.load(file, tag="mtty-2") == SIZE
        assert file.read() == b""
    assert target.vdev.migration.state is S.RUNNING
    check(target)
    source.vdev.migration.set_state(S.RUNNING)
    check(source)


def test_from_process_to_process(instances: tuple[Mdev, Mdev], target: MdevDevice) -> None:
    left, right = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            right.close()
            with vfio_user.open_mdev(instances[0]) as device:
                fill(device)
                device.vdev.migration.save(left)
            code = 0
        finally:
            os._exit(code)
    left.close()
    right.settimeout(60)
    with right:
        assert target.vdev.migration.load(right) == SIZE
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check(target)


def test_through_asyncio(source: MdevDevice, target: MdevDevice) -> None:
    fill(source)

    async def move() -> tuple[int, int]:
        left, right = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=left)
        reader, other = await asyncio.open_connection(sock=right)
        sent, received = await asyncio.gather(
            source.vdev.migration.save_async(writer), target.vdev.migration.load_async(reader)
        )
        for each in (writer, other):
            each.close()
            await each.wait_closed()
        return sent, received

    assert asyncio.run(move()) == (SIZE, SIZE)
    check(target)


def test_while_it_runs(source: MdevDevice, target: MdevDevice) -> None:
    migration, seen = source.vdev.migration, []

    def until(info: PrecopyInfo) -> bool:
        seen.append((migration.state, info))
        if len(seen) == 1:
            return False
        if len(seen) == 2:
            fill(source)  # it runs: what changes now is moved too
            return False
        return True

    file = io.BytesIO()
    assert migration.save(file, until=until) == SIZE
    assert seen[:2] == [(S.PRE_COPY, PrecopyInfo(24, 0)), (S.PRE_COPY, PrecopyInfo(0, 0))]
    file.seek(0)
    target.vdev.migration.load(file)
    check(target)


def test_what_is_left_is_told_only_while_it_runs(source: MdevDevice) -> None:
    migration = source.vdev.migration
    assert DeviceFeature.MIG_PRECOPY_INFOV2 in source.vdev.features
    for versions in (False, True):
        if versions:
            migration.ask_for_precopy_flags()
        with stream_of(migration, S.PRE_COPY) as stream:
            assert stream.precopy_info() == PrecopyInfo(24, 0, reinitialized=False)
            assert len(stream.read(10)) == 10
            assert stream.precopy_info() == PrecopyInfo(14, 0)
            assert migration.set_state(S.PRE_COPY_P2P) is None
            assert stream.precopy_info().initial_bytes == 14
            assert migration.set_state(S.STOP_COPY) is None, "the stream is the same"
            with pytest.raises(VfioIoctlError) as caught:
                stream.precopy_info()
            assert caught.value.errno == errno.EINVAL
            migration.set_state(S.RUNNING)
            with pytest.raises(VfioOSError) as ended:
                stream.read()
            assert ended.value.errno == errno.ENODEV


def test_states_without_reaching_out(source: MdevDevice, target: MdevDevice) -> None:
    both = [source.vdev.migration, target.vdev.migration]
    stop_together(both)
    assert [each.state for each in both] == [S.STOP, S.STOP]
    run_together(both)
    assert [each.state for each in both] == [S.RUNNING, S.RUNNING]
    both[0].set_state(S.RUNNING_P2P)
    assert both[0].save(io.BytesIO()) == SIZE
    assert both[0].state is S.STOP


def test_sink_that_goes_away(source: MdevDevice) -> None:
    fill(source)
    left, right = socket.socketpair()
    right.close()
    with left, pytest.raises(BrokenPipeError):
        source.vdev.migration.save(left)
    assert source.vdev.migration.state is S.RUNNING
    check(source)


@pytest.mark.parametrize("damage", ["short", "changed", "garbage"])
def test_state_that_is_not_loaded(source: MdevDevice, target: MdevDevice, damage: str) -> None:
    file = io.BytesIO()
    source.vdev.migration.save(file)
    data = bytearray(file.getvalue())
    if damage == "short":
        del data[60:]
    else:
        data[-20 if damage == "changed" else 24] ^= 0xFF
    words = {"short": "ends before its end", "changed": "damaged on its way", "garbage": "EFAULT"}[damage]
    with pytest.raises(MigrationError, match=words) as caught:
        target.vdev.migration.load(io.BytesIO(data))
    assert caught.value.state == "RESUMING"
    # All of it came, where a byte was changed on the way: the driver can't know.
    refused = pytest.raises(MigrationError, match="did not go from RESUMING to STOP")
    with refused if damage != "changed" else nullcontext():
        target.vdev.migration.set_state(S.STOP)
    target.reset()
    assert target.vdev.migration.state is S.RUNNING
    with Mtty(target) as mtty:
        mtty.ports[0].write(b"fine")
        assert mtty.ports[0].read(4) == b"fine"


def test_state_of_another_kind(source: MdevDevice) -> None:
    kind = mdev_parent("mtty").type("mtty-1")
    other = kind.create()
    try:
        file = io.BytesIO()
        source.vdev.migration.save(file)
        with vfio_user.open_mdev(other) as device:
            file.seek(0)
            with pytest.raises(MigrationError, match="it is the state of another kind of device"):
                device.vdev.migration.load(file)
    finally:
        other.remove()


def test_reset_ends_it(source: MdevDevice) -> None:
    with stream_of(source.vdev.migration, S.STOP_COPY) as stream:
        source.reset()
        assert source.vdev.migration.state is S.RUNNING
        with pytest.raises(VfioOSError) as caught:
            stream.read()
        assert caught.value.errno == errno.ENODEV


def test_while_another_thread_drives(source: MdevDevice, target: MdevDevice) -> None:
    with Mtty(source) as mtty:
        port, stop = mtty.ports[1], threading.Event()

        def talk() -> None:
            while not stop.is_set():
                port.write(b"ping")
                assert port.read(4) == b"ping"

        thread = threading.Thread(target=talk)
        thread.start()
        for _ in range(5):
            source.vdev.migration.save(io.BytesIO())
            source.vdev.migration.set_state(S.RUNNING)
        stop.set()
        thread.join()


def test_log_of_what_it_writes(source: MdevDevice) -> None:
    with source.dma_alloc(1 << 16) as buffer, DmaLog(source.vdev) as log:
        assert log.start([IovaRange(buffer.iova, buffer.iova + (1 << 16) - 1)]) == 4096
        assert list(log.report(buffer.iova, 1 << 16)) == [], "it does no DMA"
        log.stop()
        assert not log.started
