"""Log pages as frozen values (NVMe Base 2.0, 5.16.1)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

from vfio_user.drivers.nvme.layout import At, parse
from vfio_user.drivers.nvme.status import Status
from vfio_user.errors import MalformedReplyError

__all__ = [
    "ERROR_ENTRY_SIZE",
    "FIRMWARE_LOG_SIZE",
    "SMART_LOG_SIZE",
    "CriticalWarning",
    "ErrorEntry",
    "FirmwareSlots",
    "SmartLog",
    "parse_error_log",
]

SMART_LOG_SIZE = 512
"""Bytes of the SMART / Health Information page."""
FIRMWARE_LOG_SIZE = 512
"""Bytes of the Firmware Slot Information page."""
ERROR_ENTRY_SIZE = 64
"""Bytes of one entry of the Error Information page."""

_ZERO_CELSIUS = 273


class CriticalWarning(enum.IntFlag):
    """Warnings of the SMART page (NVMe Base 2.0, figure "SMART / Health Information Log Page")."""

    SPARE = 1 << 0
    """Available spare capacity is below its threshold."""
    TEMPERATURE = 1 << 1
    """A temperature is above an over- or below an under-temperature threshold."""
    RELIABILITY = 1 << 2
    """Reliability is degraded by media errors or internal errors."""
    READ_ONLY = 1 << 3
    """All media are read-only."""
    BACKUP_FAILED = 1 << 4
    """The volatile memory's backup device failed."""
    PMR_UNRELIABLE = 1 << 5
    """The persistent memory region is read-only or unreliable."""


@dataclass(frozen=True, slots=True)
class SmartLog:
    """SMART / Health Information, page 02h (NVMe Base 2.0, 5.16.1.3)."""

    critical_warning_raw: Annotated[int, At(0, 1)]
    """Critical warning bits; see `critical_warning`."""
    temperature_kelvin: Annotated[int, At(1, 2)]
    """Composite temperature, kelvin."""
    available_spare: Annotated[int, At(3, 1)]
    """Remaining spare capacity, percent."""
    spare_threshold: Annotated[int, At(4, 1)]
    """Spare capacity at which the warning comes, percent."""
    percentage_used: Annotated[int, At(5, 1)]
    """Vendor's estimate of the life used, percent; may exceed 100, 255 means 255 or more."""
    data_units_read: Annotated[int, At(32, 16)]
    """Units of 512 000 bytes read by the host, rounded up."""
    data_units_written: Annotated[int, At(48, 16)]
    """Units of 512 000 bytes written by the host, rounded up."""
    host_reads: Annotated[int, At(64, 16)]
    """Read commands completed."""
    host_writes: Annotated[int, At(80, 16)]
    """Write commands completed."""
    busy_minutes: Annotated[int, At(96, 16)]
    """Time that the controller was busy with I/O, minutes."""
    power_cycles: Annotated[int, At(112, 16)]
    """Number of power cycles."""
    power_on_hours: Annotated[int, At(128, 16)]
    """Hours with power on."""
    unsafe_shutdowns: Annotated[int, At(144, 16)]
    """Times that power was lost without an orderly shutdown."""
    media_errors: Annotated[int, At(160, 16)]
    """Unrecovered data integrity errors."""
    error_log_entries: Annotated[int, At(176, 16)]
    """Entries written to the Error Information page over the controller's life."""
    warning_temperature_minutes: Annotated[int, At(192, 4)]
    """Minutes above the warning temperature."""
    critical_temperature_minutes: Annotated[int, At(196, 4)]
    """Minutes above the critical temperature."""

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> SmartLog:
        """Read the 512 bytes of the page.

        Raises:
            MalformedReplyError: fewer bytes.
        """
        return parse(cls, data)

    @property
    def critical_warning(self) -> CriticalWarning:
        """The warnings that are set."""
        return CriticalWarning(self.critical_warning_raw)

    @property
    def temperature(self) -> int:
        """Composite temperature, degrees Celsius."""
        return self.temperature_kelvin - _ZERO_CELSIUS


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """One entry of the Error Information page 01h (NVMe Base 2.0, 5.16.1.2)."""

    error_count: Annotated[int, At(0, 8)]
    """Number of this error over the controller's life; 0 marks an unused entry."""
    sqid: Annotated[int, At(8, 2)]
    """Submission queue of the command; 65535 when not specific to one."""
    command_id: Annotated[int, At(10, 2)]
    """Identifier of the command; 65535 when not specific to one."""
    status_raw: Annotated[int, At(12, 2)]
    """Status field of the completion, with the phase tag in bit 0; see `status`."""
    parameter_location: Annotated[int, At(14, 2)]
    """Byte (7:0) and bit (10:8) of the command that is to blame; 65535 when none is."""
    lba: Annotated[int, At(16, 8)]
    """First block that met the error."""
    nsid: Annotated[int, At(24, 4)]
    """Namespace of the error."""

    @property
    def status(self) -> Status:
        """The status of the command, decoded."""
        return Status.from_int(self.status_raw >> 1)


@dataclass(frozen=True, slots=True)
class FirmwareSlots:
    """Firmware Slot Information, page 03h (NVMe Base 2.0, 5.16.1.4)."""

    active_info: Annotated[int, At(0, 1)]
    """Active firmware info (AFI)."""
    revisions: tuple[str, ...]
    """Revision in each of the slots 1 to 7; empty text where a slot holds none."""

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> FirmwareSlots:
        """Read the 512 bytes of the page.

        Raises:
            MalformedReplyError: fewer than 64 bytes.
        """
        raw = bytes(data)
        if len(raw) < 64:
            raise MalformedReplyError(f"FirmwareSlots: {len(raw)} bytes, its fields reach to byte 64")
        slots = (raw[8 * i : 8 * i + 8] for i in range(1, 8))
        texts = (slot.split(b"\0", 1)[0].decode("ascii", errors="replace").strip() for slot in slots)
        return parse(cls, raw, revisions=tuple(texts))

    @property
    def active_slot(self) -> int:
        """Slot, 1 to 7, that the running firmware came from."""
        return self.active_info & 0b111

    @property
    def next_slot(self) -> int | None:
        """Slot that the next controller reset activates, if one is chosen."""
        return self.active_info >> 4 & 0b111 or None


def parse_error_log(data: bytes | bytearray | memoryview) -> list[ErrorEntry]:
    """Read the Error Information page: the entries in use, newest first.

    Raises:
        MalformedReplyError: not a whole number of entries.
    """
    raw = bytes(data)
    if len(raw) % ERROR_ENTRY_SIZE:
        raise MalformedReplyError(f"Error Information of {len(raw)} bytes is not a whole number of entries")
    starts = range(0, len(raw), ERROR_ENTRY_SIZE)
    entries = (parse(ErrorEntry, raw[start : start + ERROR_ENTRY_SIZE]) for start in starts)
    return [entry for entry in entries if entry.error_count]
