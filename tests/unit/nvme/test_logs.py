from __future__ import annotations

import struct

import pytest

from vfio_user.drivers.nvme.logs import CriticalWarning, FirmwareSlots, SmartLog, parse_error_log
from vfio_user.errors import MalformedReplyError


def test_smart() -> None:
    data = bytearray(512)
    data[0] = 0b101
    data[1:6] = struct.pack("<HBBB", 323, 99, 10, 3)
    for index in range(10):
        data[32 + 16 * index : 48 + 16 * index] = ((1 << 64) + index).to_bytes(16, "little")
    data[192:200] = struct.pack("<II", 60, 7)
    smart = SmartLog.parse(data)
    assert smart.critical_warning == CriticalWarning.SPARE | CriticalWarning.RELIABILITY
    assert (smart.temperature_kelvin, smart.temperature) == (323, 50)
    assert (smart.available_spare, smart.spare_threshold, smart.percentage_used) == (99, 10, 3)
    assert smart.data_units_read == 1 << 64
    assert smart.error_log_entries == (1 << 64) + 9
    assert (smart.warning_temperature_minutes, smart.critical_temperature_minutes) == (60, 7)


def test_error_log_leaves_out_unused_entries() -> None:
    used = struct.pack("<QHHHHQI", 5, 1, 0x12, 0x4080 << 1, 0xFFFF, 99, 1).ljust(64, b"\0")
    (entry,) = parse_error_log(used + bytes(64))
    assert (entry.error_count, entry.sqid, entry.command_id, entry.lba, entry.nsid) == (5, 1, 0x12, 99, 1)
    assert entry.status.name == "LBA Out of Range"
    assert entry.status.dnr


def test_firmware_slots() -> None:
    data = bytes([0x21]) + bytes(7) + b"1.0     " + b"2.0\0\0\0\0\0" + bytes(512 - 24)
    slots = FirmwareSlots.parse(data)
    assert slots.active_slot == 1
    assert slots.next_slot == 2
    assert slots.revisions == ("1.0", "2.0", "", "", "", "", "")
    assert FirmwareSlots.parse(bytes([1]) + bytes(511)).next_slot is None


def test_short_pages_are_refused() -> None:
    with pytest.raises(MalformedReplyError, match="byte 200"):
        SmartLog.parse(bytes(199))
    with pytest.raises(MalformedReplyError, match="whole number"):
        parse_error_log(bytes(65))
    with pytest.raises(MalformedReplyError, match="byte 64"):
        FirmwareSlots.parse(bytes(63))
