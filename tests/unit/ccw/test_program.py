"""Channel programs as the channel reads them, on a machine of either byte order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.ccw import Ccw, CcwFlag, ChannelProgram, Command, Orb
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError

FLAGS = st.integers(0, 255).map(CcwFlag)


def test_both_formats_of_a_ccw() -> None:
    ccw = Ccw(Command.SENSE_ID, 0x123450, 7, CcwFlag.SUPPRESS_LENGTH)
    assert ccw.encode(1) == bytes.fromhex("e420000700123450")
    assert ccw.encode(0) == bytes.fromhex("e412345020000007")


@given(st.integers(0, 255), st.integers(0, (1 << 24) - 1), st.integers(0, 0xFFFF), FLAGS, st.sampled_from([0, 1]))
def test_a_ccw_comes_back_as_it_was(command: int, address: int, count: int, flags: CcwFlag, form: int) -> None:
    ccw = Ccw(command, address, count, flags)
    assert Ccw.decode(ccw.encode(form), form) == ccw


@pytest.mark.parametrize(
    ("ccw", "form", "error"),
    [
        (Ccw(1, 1 << 24), 0, BoundsError),
        (Ccw(1, 1 << 31), 1, BoundsError),
        (Ccw(256), 1, BoundsError),
        (Ccw(1, 0, 1 << 16), 1, BoundsError),
        (Ccw(1), 2, ArgumentError),
    ],
)
def test_what_does_not_fit(ccw: Ccw, form: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        ccw.encode(form)


def test_bytes_that_are_no_ccw() -> None:
    with pytest.raises(BoundsError, match=r"8 bytes, not 7"):
        Ccw.decode(bytes(7))
    with pytest.raises(ArgumentError):
        Ccw.decode(bytes(8), 2)


def test_commands_are_chained_but_for_the_last() -> None:
    program = ChannelProgram().command(0x83, 0x1000, 4).command(0x22, 0x2000, 8, flags=CcwFlag.SUPPRESS_LENGTH)
    assert program.place(0x8000) == bytes.fromhex("8340000400001000 2220000800002000".replace(" ", ""))
    assert program.size == 16


def test_data_is_chained_as_asked() -> None:
    program = ChannelProgram().command(1, 0x1000, 4, flags=CcwFlag.CHAIN_DATA).command(1, 0x2000, 4)
    first, second = program.place(0)[:8], program.place(0)[8:]
    assert Ccw.decode(first).flags == CcwFlag.CHAIN_DATA
    assert Ccw.decode(second).flags == CcwFlag(0)


def test_a_jump_goes_to_the_place_of_its_target() -> None:
    program = ChannelProgram().command(Command.NOP).jump(2).command(Command.NOP)
    words = program.place(0x4000)
    assert words[8:16] == bytes.fromhex("0800000000004010")
    assert ChannelProgram(form=0).command(3).jump(2).command(3).place(0x4000)[8:16] == bytes.fromhex("0800401000000000")


@pytest.mark.parametrize(
    "program",
    [
        ChannelProgram(),
        ChannelProgram().jump(0),
        ChannelProgram().command(3).jump(0),
        ChannelProgram().command(3).jump(3).command(3),
        ChannelProgram().jump(1).jump(2).command(3),
        ChannelProgram().jump(-1).command(3),
    ],
)
def test_programs_that_go_nowhere(program: ChannelProgram) -> None:
    with pytest.raises(ArgumentError):
        program.place(0)


def test_lists_of_addresses_stand_behind_the_commands() -> None:
    program = ChannelProgram().indirect(2, [0x180000F00, 0x181000000], 0x200).command(Command.NOP)
    words = program.place(0x4000)
    assert Ccw.decode(words[:8]) == Ccw(2, 0x4010, 0x200, CcwFlag.INDIRECT | CcwFlag.CHAIN_COMMAND)
    assert words[16:] == bytes.fromhex("0000000180000f00 0000000181000000".replace(" ", ""))
    assert len(words) == program.size
    narrow = ChannelProgram(idaw_bits=31).indirect(2, [0x1700, 0x2000], 0x200)
    assert narrow.place(0x4000)[8:] == bytes.fromhex("0000170000002000")
    assert narrow.size == 16


@pytest.mark.parametrize(
    ("bits", "addresses", "count", "error"),
    [
        (64, [], 1, BoundsError),
        (64, [0x1000], 0, BoundsError),
        (64, [0x1000], 4097, BoundsError),
        (64, [0x1000, 0x2000], 4096, BoundsError),
        (64, [0x1F00, 0x2100], 512, AlignmentError),
        (31, [0x1000, 0x1400], 2049, AlignmentError),
        (31, [1 << 31], 1, BoundsError),
        (64, [1 << 64], 1, BoundsError),
    ],
)
def test_lists_that_can_not_be(bits: int, addresses: list[int], count: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        ChannelProgram(idaw_bits=bits).indirect(2, addresses, count)


def test_where_a_program_can_be() -> None:
    program = ChannelProgram().command(3)
    with pytest.raises(AlignmentError):
        program.place(4)
    with pytest.raises(BoundsError):
        ChannelProgram().indirect(2, [0], 1).place(1 << 31)
    for wrong in ({"form": 2}, {"idaw_bits": 32}):
        with pytest.raises(ArgumentError):
            ChannelProgram(**wrong)  # type: ignore[arg-type]  # numbers, as they are to be


def test_an_orb() -> None:
    assert Orb(0x1000).encode() == bytes.fromhex("0000000000c2ff0000001000")
    orb = Orb(0x2000, form=0, idaw_bits=31, prefetch=False, paths=0x80, parameter=0xDEADBEEF, suspend=True)
    assert orb.encode() == bytes.fromhex("deadbeef0800800000002000")
    assert Orb.of(ChannelProgram(form=0, idaw_bits=31), 8) == Orb(8, form=0, idaw_bits=31)
    with pytest.raises(AlignmentError):
        Orb(4).encode()
    for wrong in (Orb(1 << 31), Orb(0, paths=256), Orb(0, parameter=1 << 32)):
        with pytest.raises(BoundsError):
            wrong.encode()
