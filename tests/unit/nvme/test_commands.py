from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.drivers.nvme import commands
from vfio_user.drivers.nvme.commands import Completion, SubmissionEntry
from vfio_user.drivers.nvme.opcodes import AdminOpcode, Cns, FeatureId, LogPageId, opcode_name
from vfio_user.errors import ArgumentError, BoundsError


def dwords(entry: SubmissionEntry) -> tuple[int, ...]:
    return struct.unpack("<16I", entry.pack())


def test_every_field_lies_where_the_specification_has_it() -> None:
    entry = SubmissionEntry(
        0xA1, 0xB2, 0xC3C4, 0xD5D6D7D8, 2, 3, 0x0000_0005_0000_0004, 7 << 32 | 6, 9 << 32 | 8, *range(10, 16)
    )
    assert dwords(entry) == (0xC3C4B2A1, 0xD5D6D7D8, *range(2, 16))
    assert SubmissionEntry.unpack(entry.pack()) == entry


def test_a_field_that_does_not_fit_is_named() -> None:
    with pytest.raises(BoundsError, match="opcode=256"):
        SubmissionEntry(256).pack()


@settings(deadline=None)
@given(lba=st.integers(0, (1 << 64) - 1), num_blocks=st.integers(1, 65536))
def test_read_and_write(lba: int, num_blocks: int) -> None:
    for entry, opcode in (
        (commands.read(5, lba, num_blocks, prp1=0x1000, prp2=0x2000), 2),
        (commands.write(5, lba, num_blocks, prp1=0x1000, prp2=0x2000), 1),
    ):
        got = dwords(entry)
        assert got[0] == opcode
        assert got[1] == 5
        assert got[6:10] == (0x1000, 0, 0x2000, 0)
        assert got[10] | got[11] << 32 == lba
        assert got[12] == num_blocks - 1


@pytest.mark.parametrize("num_blocks", [0, -1, 65537])
def test_a_command_takes_1_to_65536_blocks(num_blocks: int) -> None:
    with pytest.raises(BoundsError, match="1 to 65536"):
        commands.read(1, 0, num_blocks, prp1=0)


def test_flags_of_write_and_write_zeroes() -> None:
    assert commands.write(1, 0, 8, prp1=0, force_unit_access=True).cdw12 == 1 << 30 | 7
    assert commands.write_zeroes(1, 0, 8).cdw12 == 7
    assert commands.write_zeroes(1, 0, 8, deallocate=True).cdw12 == 1 << 25 | 7
    assert commands.flush(0xFFFF_FFFF).nsid == 0xFFFF_FFFF


def test_deallocate_and_its_ranges() -> None:
    entry = commands.deallocate(1, 256, prp1=0x4000)
    assert (entry.opcode, entry.cdw10, entry.cdw11) == (9, 255, 4)
    assert commands.dataset_ranges([(1 << 40, 16), (7, 1)]) == struct.pack("<IIQIIQ", 0, 16, 1 << 40, 0, 1, 7)
    for count in (0, 257):
        with pytest.raises(BoundsError, match="1 to 256"):
            commands.deallocate(1, count, prp1=0)
    with pytest.raises(BoundsError, match="64 bits of LBA"):
        commands.dataset_ranges([(0, 1 << 32)])


def test_queue_commands() -> None:
    cq = commands.create_completion_queue(3, 64, prp1=0x8000, vector=2)
    assert (cq.opcode, cq.prp1, cq.cdw10, cq.cdw11) == (
        AdminOpcode.CREATE_CQ,
        0x8000,
        63 << 16 | 3,
        2 << 16 | 0b11,
    )
    assert commands.create_completion_queue(3, 64, prp1=0x8000, vector=None).cdw11 == 0b01
    sq = commands.create_submission_queue(3, 64, prp1=0x9000, cqid=3)
    assert (sq.opcode, sq.prp1, sq.cdw10, sq.cdw11) == (
        AdminOpcode.CREATE_SQ,
        0x9000,
        63 << 16 | 3,
        3 << 16 | 1,
    )
    assert commands.delete_submission_queue(3).cdw10 == commands.delete_completion_queue(3).cdw10 == 3
    assert commands.abort(2, 0x1234).cdw10 == 0x1234 << 16 | 2


def test_identify_features_and_log_pages() -> None:
    assert commands.identify(Cns.NAMESPACE, nsid=4, prp1=0x1000)[:4] == (AdminOpcode.IDENTIFY, 0, 0, 4)
    assert commands.set_features(FeatureId.NUM_QUEUES, 3 << 16 | 3)[9:11] == (7, 3 << 16 | 3)
    assert commands.get_features(FeatureId.NUM_QUEUES).cdw10 == 7
    log = commands.get_log_page(LogPageId.ERROR_INFORMATION, 1 << 20, prp1=0, offset=5 << 32 | 8)
    assert (log.cdw10, log.cdw11, log.cdw12, log.cdw13) == (0xFFFF << 16 | 1, 3, 8, 5)
    assert log.nsid == 0xFFFF_FFFF
    for size, offset in ((0, 0), (6, 0), (8, 2)):
        with pytest.raises(ArgumentError, match="multiples of 4"):
            commands.get_log_page(2, size, prp1=0, offset=offset)


def test_completion_round_trip() -> None:
    entry = Completion(0x11223344, 0x55667788, 3, 1, 0xABCD, 0x80 << 1 | 1)
    raw = struct.pack("<IIHHHH", *entry)
    assert entry.pack() == raw
    assert Completion.unpack_from(b"\0" * 16 + raw, 16) == entry
    assert entry.status.name == "LBA Out of Range"
    assert not entry.ok
    assert Completion(0, 0, 0, 0, 0, 1).ok


def test_opcode_names() -> None:
    assert opcode_name(8, admin=False) == "write zeroes"
    assert opcode_name(6, admin=True) == "identify"
    assert opcode_name(0xC1, admin=True) == "opcode 0xc1"
