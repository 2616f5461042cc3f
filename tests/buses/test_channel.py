"""Channel I/O on a virtio disk: programs in both formats, chains, jumps, indirect addresses, halt, clear, errors."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.conftest import kernel_modes
from tests.guest.leaks import nothing_left
from vfio_user import CcwDevice, container_of, testing
from vfio_user.binding import lent
from vfio_user.ccw import (
    CcwFlag,
    ChannelProgram,
    ChannelProgramError,
    Command,
    DeviceStatus,
    Function,
    Orb,
    SenseId,
    SenseReason,
    subchannel,
    subchannel_of,
    subchannels,
)
from vfio_user.drivers.virtio.ccw import CcwCommand, VirtioCcw
from vfio_user.errors import ArgumentError, BusyError, DeadlineError, VfioOSError
from vfio_user.kernel.uapi import CcwIrq, DeviceFlags
from vfio_user.mdev import Mdev

SIZE = 1 << 20
SLI = CcwFlag.SUPPRESS_LENGTH
LOW = 1 << 31
FLUSH, VERSION_1 = 1 << 9, 1 << 32
IDENTITY = SenseId(0x3832, 2, 0, 0)
#: A container of type1 can't pin what a program speaks of; see `test_type1_pins_nothing`.
MODES = [mode for mode in kernel_modes() if mode != "type1"] if testing.in_guest() else []


@pytest.fixture(scope="module")
def instance() -> Iterator[Mdev]:
    """The mediated device of the disk's subchannel, which the guest has bound to vfio_ccw."""
    made = subchannel(testing.device("virtio-blk-ccw").address).create()
    yield made
    made.remove()


@pytest.fixture(params=MODES)
def ccw(instance: Mdev, request: pytest.FixtureRequest) -> Iterator[CcwDevice]:
    with nothing_left(), vfio_user.open_ccw(instance, mode=request.param) as device:
        yield device


@pytest.fixture
def one(instance: Mdev) -> Iterator[CcwDevice]:
    with nothing_left(), vfio_user.open_ccw(instance) as device:
        yield device


def test_what_it_is(ccw: CcwDevice) -> None:
    assert ccw.vdev.info.flags & DeviceFlags.CCW
    assert container_of(ccw.vdev, CcwDevice.vdev) is ccw
    assert [ccw.irq(kind).count for kind in CcwIrq] == [1, 1, 1]
    assert ccw.sense_id() == IDENTITY
    for _ in range(20):
        assert ccw.command(Command.SENSE_ID, 7, flags=SLI) == bytes.fromhex("ff383202000000")


def test_a_reset_leaves_it_working(ccw: CcwDevice) -> None:
    ccw.reset()
    assert ccw.sense_id() == IDENTITY


def test_halt_and_clear(ccw: CcwDevice) -> None:
    assert ccw.halt().scsw.functions == Function.HALT
    assert ccw.clear().scsw.functions == Function.CLEAR
    assert ccw.sense_id() == IDENTITY


def test_its_information_block(one: CcwDevice) -> None:
    schib = one.schib()
    assert schib.valid
    assert schib.enabled
    assert schib.number == 0x100
    assert schib.paths
    assert one.channel_report() is None


@pytest.mark.parametrize("form", [0, 1])
def test_both_formats(one: CcwDevice, form: int) -> None:
    with one.dma_alloc(4096, iova_limit=1 << 24) as memory:
        data = memory[1024:]
        program = ChannelProgram(form).command(Command.SENSE_ID, data.iova, 7, flags=SLI)
        one.run(program, memory)
        assert bytes(data.view[:4]) == bytes.fromhex("ff383202")


def test_a_chain_with_a_jump(one: CcwDevice) -> None:
    with one.dma_alloc(4096, iova_limit=LOW) as memory:
        revision, config = memory[1024:1028], memory[2048:2112]
        program = (
            ChannelProgram()
            .command(CcwCommand.SET_REVISION, revision.iova, 4, flags=SLI)
            .command(CcwCommand.READ_CONFIGURATION, config.iova, 8, flags=SLI)
            .jump(4)
            .command(0xFF)  # refused, if it were reached
            .command(Command.NOP, 0, 0, flags=SLI)
        )
        one.run(program, memory)
        # Revision 0 is legacy: the machine's byte order.
        assert struct.unpack(">Q", config.view[:8]) == (SIZE // 512,)


@pytest.mark.parametrize("bits", [31, 64])
def test_indirect_addresses(one: CcwDevice, bits: int) -> None:
    block = 2048 if bits == 31 else 4096
    with (
        one.dma_alloc(4096, iova_limit=LOW) as memory,
        one.dma_alloc(4096, iova_limit=LOW) as first,
        one.dma_alloc(4096, iova_limit=LOW) as second,
    ):
        first.view[:] = second.view[:] = b"\xaa" * 4096
        # 4 bytes at the end of one block, 3 at the start of another.
        pieces = [first.iova + block - 4, second.iova]
        one.run(ChannelProgram(idaw_bits=bits).indirect(Command.SENSE_ID, pieces, 7, flags=SLI), memory)
        assert bytes(first.view[:block]) == b"\xaa" * (block - 4) + bytes.fromhex("ff383202")
        # What is in the second piece can't be told: QEMU 10 begins each piece with the first byte of the reply.
        assert b"\xaa" not in bytes(second.view[:3])
        assert bytes(second.view[3:]) == b"\xaa" * 4093


def test_data_beyond_4_gib_by_indirect_addresses(one: CcwDevice) -> None:
    with (
        one.dma_alloc(4096, iova_limit=LOW) as memory,
        one.dma_alloc(4096) as data,
        one.address_space.map(data, iova=0x1_8000_0000) as mapping,
    ):
        one.run(ChannelProgram().indirect(Command.SENSE_ID, [mapping.iova], 7, flags=SLI), memory)
        assert bytes(data.view[:4]) == bytes.fromhex("ff383202")


def test_what_goes_wrong_has_names(one: CcwDevice) -> None:
    with one.dma_alloc(4096, iova_limit=LOW) as memory:
        data = memory[1024:]
        with pytest.raises(ChannelProgramError, match=r"unit check.*command reject") as refused:
            one.run(ChannelProgram().command(0xFF, data.iova, 1, flags=SLI), memory)
        assert refused.value.irb.scsw.device & DeviceStatus.UNIT_CHECK
        assert refused.value.irb.reasons == SenseReason.COMMAND_REJECT
        with pytest.raises(ChannelProgramError, match=r"program check"):
            one.run(ChannelProgram().command(CcwCommand.SET_REVISION, data.iova, 1), memory)
        assert one.sense_id() == IDENTITY


def test_what_is_not_mapped_is_not_started(ccw: CcwDevice) -> None:
    with ccw.dma_alloc(4096, iova_limit=LOW) as memory:
        for program, at in (
            (ChannelProgram().command(Command.SENSE_ID, 0x7000_0000, 7), memory.iova),
            (ChannelProgram().command(Command.NOP), 0x7000_0000),
        ):
            data = program.place(memory.iova)
            memory.view[: len(data)] = data
            with pytest.raises(VfioOSError, match=r"not mapped"):
                ccw.start(Orb.of(program, at))
    with pytest.raises(DeadlineError):
        ccw.wait(0.1)


def test_type1_pins_nothing(instance: Mdev) -> None:
    with nothing_left(), vfio_user.open_ccw(instance, mode="type1") as device:
        with pytest.raises(VfioOSError, match=r"mode='type1v2'") as refused:
            device.sense_id()
        assert refused.value.errno == errno.EACCES
        with device.dma_alloc(4096, iova_limit=LOW) as memory:
            assert device.run(ChannelProgram().command(Command.NOP, 0, 0, flags=SLI), memory).scsw.ended


@pytest.mark.parametrize(("revision", "order"), [(0, ">Q"), (1, "<Q")])
def test_a_virtio_device(one: CcwDevice, revision: int, order: str) -> None:
    with VirtioCcw(one, revision) as device:
        assert device.identity == IDENTITY
        assert device.status == 0
        assert device.features & FLUSH
        if revision:
            assert device.features & VERSION_1
            device.accept(VERSION_1)
        assert struct.unpack_from(order, device.configuration(64)) == (SIZE // 512,)
    # The revision is agreed on once for each opening; a reset does not end that.
    with pytest.raises(ChannelProgramError, match=r"command reject"):
        VirtioCcw(one, revision).start()


def test_the_kernel_asks_for_it_back() -> None:
    made = subchannel(testing.devices("virtio-blk-ccw")[1].address).create()
    thread = threading.Thread(target=(made.path / "remove").write_text, args=("1",))
    with nothing_left():
        with vfio_user.open_ccw(made) as ccw:
            with pytest.raises(BusyError, match=r"open in this process"):
                made.remove()
            (asked,) = ccw.irq(CcwIrq.REQ).enable(1)
            thread.start()
            assert asked.wait(60) >= 1
        thread.join(60)
    assert not made.exists()


def test_subchannels_by_their_name_and_by_that_of_their_devices() -> None:
    address = testing.device("virtio-blk-ccw").address
    assert subchannel(address) in subchannels()
    other = next(each for each in subchannels() if each.ccw_device)
    assert subchannel_of(other.ccw_device or "") == other
    with pytest.raises(ArgumentError, match=r"not bound to vfio_ccw"):
        other.create()
    for wrong in ("", "0.0", "0.0.fff0", "../0.0.0001"):
        with pytest.raises(ArgumentError):
            subchannel(wrong)
        with pytest.raises(ArgumentError):
            subchannel_of(wrong)


def test_a_second_instance_has_no_room(instance: Mdev) -> None:
    with pytest.raises(BusyError):
        subchannel(testing.device("virtio-blk-ccw").address).create()


def test_a_subchannel_is_lent_and_given_back(vfio_device: Callable[[str], testing.GuestDevice]) -> None:
    found = subchannel(testing.devices("virtio-blk-ccw")[1].address)
    with lent(found, "io_subchannel"):
        assert found.driver == "io_subchannel"
    assert found.driver == "vfio_ccw"
