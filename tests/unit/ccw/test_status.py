"""What a subchannel answers, read on a machine of either byte order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.ccw import (
    Activity,
    ChannelReport,
    ChannelStatus,
    DeviceStatus,
    Function,
    Irb,
    Schib,
    Scsw,
    SenseId,
    SenseReason,
    StatusControl,
)
from vfio_user.errors import MalformedReplyError

# As seen: Sense ID on a virtio disk of QEMU.
GOOD = bytes.fromhex("00804007000010080c0000f8")


def test_a_status_of_a_command_that_went_well() -> None:
    scsw = Scsw.decode(GOOD)
    assert scsw.functions == Function.START
    assert scsw.control == StatusControl.PRIMARY | StatusControl.SECONDARY | StatusControl.PENDING
    assert scsw.device == DeviceStatus.CHANNEL_END | DeviceStatus.DEVICE_END
    assert (scsw.channel, scsw.form, scsw.condition, scsw.address, scsw.count) == (0, 1, 0, 0x1008, 0xF8)
    assert scsw.problems == ()
    assert scsw.ended


def test_statuses_of_halt_and_clear() -> None:
    assert Scsw.decode(bytes.fromhex("00801001") + bytes(8)).functions == Function.CLEAR
    assert Scsw.decode(bytes.fromhex("00802001") + bytes(8)).functions == Function.HALT


def test_what_is_going_on() -> None:
    scsw = Scsw.decode(bytes.fromhex("00804c88") + bytes(8))
    assert scsw.activity == Activity.START_PENDING | Activity.RESUME_PENDING | Activity.SUBCHANNEL_ACTIVE
    assert scsw.control == StatusControl.INTERMEDIATE
    assert not scsw.ended


@pytest.mark.parametrize(
    ("word", "device", "channel", "problems"),
    [
        (0x00804007, 0x02, 0, ("unit check",)),
        (0x00804007, 0x0C, 0x20, ("program check",)),
        (0x00804007, 0x0C, 0x40, ("incorrect length",)),
        (0x00804007, 0x0D, 0x11, ("unit exception", "chaining check", "protection check")),
        (0x01804007, 0x0C, 0, ("status was pending",)),
        (0x03804007, 0, 0, ("no path is operational",)),
        (0x00804007, 0x0C, 0x80, ()),
    ],
)
def test_problems_have_names(word: int, device: int, channel: int, problems: tuple[str, ...]) -> None:
    data = word.to_bytes(4, "big") + bytes(4) + bytes([device, channel, 0, 0])
    assert Scsw.decode(data).problems == problems


def test_sense_data_comes_with_the_status() -> None:
    block = bytearray(96)
    block[:12] = bytes.fromhex("008040170000100802000000")
    block[16:20] = (1 << 24 | 3 << 16).to_bytes(4, "big")
    block[32:36] = b"\x80\x12\x34\x56"
    irb = Irb.decode(bytes(block))
    assert irb.sense == b"\x80\x12\x34"
    assert irb.reasons == SenseReason.COMMAND_REJECT
    assert str(irb) == "unit check; sense 801234 (command reject)"
    block[17] = 0
    assert Irb.decode(bytes(block)).sense == bytes(block[32:64]), "no length: all there is room for"
    block[16] = 0
    assert Irb.decode(bytes(block)).sense == b""
    assert str(Irb.decode(GOOD + bytes(84))) == "no problem"


@given(st.binary(min_size=96, max_size=96))
def test_any_block_can_be_read(data: bytes) -> None:
    irb = Irb.decode(data)
    assert irb.raw == data
    assert len(irb.sense) <= 32
    assert str(irb)


def test_an_information_block() -> None:
    data = bytearray(52)
    data[:4] = (0xCAFE).to_bytes(4, "big")
    data[4:8] = (1 << 23 | 1 << 16 | 0x0100).to_bytes(4, "big")
    data[8], data[11], data[14], data[15] = 0x80, 0xC0, 0xFF, 0xA0
    data[16:24] = bytes(range(8))
    data[28:40] = GOOD
    schib = Schib.decode(bytes(data))
    assert (schib.parameter, schib.number, schib.enabled, schib.valid) == (0xCAFE, 0x100, True, True)
    assert (schib.paths, schib.installed, schib.operational, schib.available) == (0x80, 0xC0, 0xFF, 0xA0)
    assert schib.path_ids == tuple(range(8))
    assert schib.scsw == Scsw.decode(GOOD)


def test_channel_reports() -> None:
    assert ChannelReport.decode(0) is None
    report = ChannelReport.decode(0x64020042)
    assert report == ChannelReport(solicited=True, overflow=True, chained=False, source=4, error=2, identity=0x42)
    assert str(report) == "channel path 0x42: code 2"


def test_what_a_device_says_that_it_is() -> None:
    assert SenseId.decode(bytes.fromhex("ff383202000000")) == SenseId(0x3832, 2, 0, 0)
    assert SenseId.decode(bytes.fromhex("ff3990e93390 0a".replace(" ", ""))) == SenseId(0x3990, 0xE9, 0x3390, 0x0A)
    assert SenseId.decode(bytes.fromhex("ff383202")) == SenseId(0x3832, 2, 0, 0)
    for wrong in (b"", bytes(7), b"\xff\x38\x32"):
        with pytest.raises(MalformedReplyError):
            SenseId.decode(wrong)


@pytest.mark.parametrize(("decode", "size"), [(Scsw.decode, 12), (Irb.decode, 96), (Schib.decode, 52)])
def test_other_sizes_are_refused(decode: object, size: int) -> None:
    for wrong in (size - 1, size + 1):
        with pytest.raises(MalformedReplyError, match=f"has {size} bytes, not {wrong}"):
            decode(bytes(wrong))  # type: ignore[operator]  # each of them takes bytes


def test_names_of_flags_are_numbers_of_the_architecture() -> None:
    assert ChannelStatus(0x7F) == ~ChannelStatus.INTERMEDIATE_INTERRUPT
