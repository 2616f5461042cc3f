"""Channel devices on a fake kernel: how programs are handed over, and what comes back."""

from __future__ import annotations

import dataclasses
import errno
import os
import struct
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.fake_device import EVENTFD, READ_WRITE, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from tests.unit.mdev.conftest import FIRST, FakeMdevBus
from vfio_user import CcwDevice, VfioDevice
from vfio_user._uapi import lib
from vfio_user.ccw import (
    CCW_OPS,
    ChannelProgram,
    ChannelProgramError,
    Function,
    Orb,
    SenseId,
    Subchannel,
    subchannel,
    subchannel_of,
)
from vfio_user.errors import ArgumentError, BoundsError, DeadlineError, UnsupportedError, VfioOSError

IO, ASYNC, SCHIB, CRW = range(4)
GOOD = bytes.fromhex("00804007000010080c000000")
LOW = 1 << 31


def kind_of(subtype: int) -> bytes:
    """Make the capability that says what a region is."""
    return struct.pack("=HHIII", lib.VFIO_REGION_INFO_CAP_TYPE, 1, 0, lib.VFIO_REGION_TYPE_CCW, subtype)


class FakeChannel(FakeDevice):
    """A subchannel: what is written to its regions makes a status."""

    def __init__(self) -> None:
        super().__init__()
        self.flags = int(lib.VFIO_DEVICE_FLAGS_CCW | lib.VFIO_DEVICE_FLAGS_RESET)
        self.regions = {IO: (124, READ_WRITE), ASYNC: (8, READ_WRITE), SCHIB: (52, READ_WRITE), CRW: (8, READ_WRITE)}
        self.capabilities = {
            ASYNC: kind_of(lib.VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD),
            SCHIB: kind_of(lib.VFIO_REGION_SUBTYPE_CCW_SCHIB),
            CRW: kind_of(lib.VFIO_REGION_SUBTYPE_CCW_CRW),
        }
        self.irqs = dict.fromkeys(range(3), (1, EVENTFD))
        self.num_regions, self.num_irqs = 4, 3
        self.statuses: list[bytes] = []
        """Statuses that the next start brings, one interrupt each; none at all is silence."""
        self.written: list[tuple[int, bytes]] = []
        self.refusal = 0
        self.on_start: Callable[[], None] = lambda: None

    def take(self, vdev: VfioDevice, offset: int, data: bytes) -> None:
        """Stand in for the write of a region."""
        region = offset >> 40
        self.written.append((region, data))
        if self.refusal:
            raise VfioOSError(self.refusal, "write")
        if region == IO:
            self.on_start()
        for status in self.statuses:
            self.write(IO, 24, status.ljust(96, b"\0"))
            os.eventfd_write(self.eventfds[0, 0], 1)


@pytest.fixture
def channel(tree: FakeSysfs, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeChannel]:
    bus = FakeMdevBus(tree, monkeypatch)
    bus.create(bus.parent("0.0.0001", "vfio_ccw-io", api="vfio-ccw"), "vfio_ccw-io", FIRST)
    found = kernel.devices[FIRST] = FakeChannel()
    found.statuses = [GOOD]
    yield found
    found.close()


@pytest.fixture
def ccw(channel: FakeChannel) -> Iterator[CcwDevice]:
    ops = dataclasses.replace(CCW_OPS, write=channel.take)
    with nothing_left(), vfio_user.open_ccw(FIRST, mode="type1v2", ops=ops) as device:
        yield device


def test_a_program_is_placed_started_and_heard_of(ccw: CcwDevice, channel: FakeChannel) -> None:
    with ccw.dma_alloc(4096, iova_limit=LOW) as memory:
        irb = ccw.run(ChannelProgram().command(3, 0, 0), memory)
        assert irb.scsw.problems == ()
        assert bytes(memory.view[:8]) == bytes.fromhex("0300000000000000")
        region, block = channel.written[-1]
        assert (region, len(block)) == (IO, 24)
        assert block[:12] == Orb(memory.iova).encode()
        assert block[12:] == bytes.fromhex("000040000000000000000000")


def test_a_command_that_reads(ccw: CcwDevice, channel: FakeChannel) -> None:
    channel.statuses = [GOOD[:10] + (248).to_bytes(2, "big")]
    with pytest.raises(vfio_user.errors.MalformedReplyError):
        ccw.sense_id()  # the fake device puts nothing there
    assert ccw.command(2, 255) == bytes(7), "what was left over is cut off"
    with pytest.raises(BoundsError):
        ccw.command(2, 0)
    assert SenseId.decode(b"\xff\x38\x32\x02") == SenseId(0x3832, 2, 0, 0)


def test_a_check_is_an_error_with_the_status(ccw: CcwDevice, channel: FakeChannel) -> None:
    channel.statuses = [bytes.fromhex("008040170000100802000000")]
    with (
        ccw.dma_alloc(4096, iova_limit=LOW) as memory,
        pytest.raises(ChannelProgramError, match=r"unit check") as error,
    ):
        ccw.run(ChannelProgram().command(0xFF, 0, 1), memory)
    assert error.value.irb.scsw.device == 2


def test_the_last_of_several_statuses_counts(ccw: CcwDevice, channel: FakeChannel) -> None:
    first = bytes.fromhex("008040050000100808000000")  # primary alone: the channel has ended, the device has not
    irqs = ccw.vdev.irqs[0]

    def start() -> None:
        channel.write(IO, 24, first.ljust(96, b"\0"))
        os.eventfd_write(channel.eventfds[0, 0], 1)

    channel.on_start, channel.statuses = start, []
    with ccw.dma_alloc(4096, iova_limit=LOW) as memory, pytest.raises(DeadlineError):
        ccw.run(ChannelProgram().command(3, 0, 0), memory, timeout=0.2)
    assert irqs.vectors


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EINVAL, r"not mapped"),
        (errno.EBUSY, r"under way"),
        (errno.EIO, r"gone"),
        (errno.EOPNOTSUPP, r"command mode"),
        (errno.ENOENT, r"not mapped"),
        (errno.EACCES, r"mode='type1v2'"),
    ],
)
def test_what_the_kernel_refuses_is_explained(ccw: CcwDevice, channel: FakeChannel, code: int, hint: str) -> None:
    channel.refusal = code
    with pytest.raises(VfioOSError, match=hint) as error:
        ccw.start(Orb(0x1000))
    assert error.value.errno == code
    channel.refusal = 0


def test_a_program_that_is_too_long_for_its_memory(ccw: CcwDevice) -> None:
    with (
        ccw.dma_alloc(4096, iova_limit=LOW) as memory,
        pytest.raises(BoundsError, match=r"16 bytes does not fit the 8"),
    ):
        ccw.run(ChannelProgram().command(3).command(3), memory[:8])


def test_halt_and_clear(ccw: CcwDevice, channel: FakeChannel) -> None:
    channel.statuses = [bytes.fromhex("00802001")]
    assert ccw.halt().scsw.functions == Function.HALT
    channel.statuses = [bytes.fromhex("00801001")]
    assert ccw.clear().scsw.functions == Function.CLEAR
    assert [data for region, data in channel.written if region == ASYNC] == [
        struct.pack("=II", 1, 0),
        struct.pack("=II", 2, 0),
    ]
    channel.statuses = []
    with pytest.raises(DeadlineError):
        ccw.clear(timeout=0.1)


def test_information_and_reports(ccw: CcwDevice, channel: FakeChannel) -> None:
    channel.write(SCHIB, 4, (1 << 23 | 1 << 16 | 0x100).to_bytes(4, "big"))
    assert ccw.schib().number == 0x100
    assert ccw.channel_report() is None
    channel.write(CRW, 0, (0x04020042).to_bytes(4, "big"))
    report = ccw.channel_report()
    assert report is not None
    assert report.identity == 0x42


def test_a_kernel_without_the_other_regions(channel: FakeChannel) -> None:
    channel.capabilities.clear()
    with nothing_left(), vfio_user.open_ccw(FIRST, mode="type1v2") as ccw:
        for verb in (ccw.halt, ccw.clear, ccw.schib, ccw.channel_report):
            with pytest.raises(UnsupportedError, match=r"this kernel has no region"):
                verb()


def test_other_mediated_devices_are_refused(tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = FakeMdevBus(tree, monkeypatch)
    bus.create(bus.parent("mtty", "mtty-1"), "mtty-1", FIRST)
    with pytest.raises(ArgumentError, match=r"no channel device, but one of vfio-pci"):
        vfio_user.open_ccw(FIRST)


def test_subchannels(tree: FakeSysfs) -> None:
    folder = tree.root / "devices/css0/0.0.0001"
    (folder / "0.0.0005").mkdir(parents=True)
    for bus, name, path in (("css", "0.0.0001", folder), ("ccw", "0.0.0005", folder / "0.0.0005")):
        (tree.root / "bus" / bus / "devices").mkdir(parents=True)
        (tree.root / "bus" / bus / "devices" / name).symlink_to(path)
    assert subchannel_of("0.0.0005") == subchannel("0.0.0001") == Subchannel("0.0.0001")
    assert Subchannel("0.0.0001").ccw_device == "0.0.0005"
    with pytest.raises(ArgumentError, match=r"not bound to vfio_ccw \(driver: none\)"):
        Subchannel("0.0.0001").create()
    for wrong in ("", "0.0.0009", "..", "0.0.00001"):
        with pytest.raises(ArgumentError):
            subchannel(wrong)
        with pytest.raises(ArgumentError):
            subchannel_of(wrong)
