"""What a subchannel answers: status words, interruption response blocks, information blocks, channel reports.

Source: z/Architecture Principles of Operation (SA22-7832), chapters 14 to 17.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from vfio_user._uapi import lib
from vfio_user.errors import MalformedReplyError

__all__ = [
    "Activity",
    "ChannelReport",
    "ChannelStatus",
    "DeviceStatus",
    "Function",
    "Irb",
    "Schib",
    "Scsw",
    "SenseId",
    "SenseReason",
    "StatusControl",
]

_SCSW = struct.Struct(">IIBBH")


class Function(enum.IntFlag):
    """Functions under way or ended, of a status word."""

    CLEAR = 1
    HALT = 2
    START = 4


class Activity(enum.IntFlag):
    """What the subchannel does, of a status word."""

    SUSPENDED = 0x01
    DEVICE_ACTIVE = 0x02
    SUBCHANNEL_ACTIVE = 0x04
    CLEAR_PENDING = 0x08
    HALT_PENDING = 0x10
    START_PENDING = 0x20
    RESUME_PENDING = 0x40


class StatusControl(enum.IntFlag):
    """Which kinds of status are there, of a status word."""

    PENDING = 0x01
    SECONDARY = 0x02
    PRIMARY = 0x04
    INTERMEDIATE = 0x08
    ALERT = 0x10


class DeviceStatus(enum.IntFlag):
    """What the device says of the last command."""

    UNIT_EXCEPTION = 0x01
    UNIT_CHECK = 0x02
    DEVICE_END = 0x04
    CHANNEL_END = 0x08
    BUSY = 0x10
    CONTROL_UNIT_END = 0x20
    STATUS_MODIFIER = 0x40
    ATTENTION = 0x80


class ChannelStatus(enum.IntFlag):
    """What the channel says of the program."""

    CHAINING_CHECK = 0x01
    INTERFACE_CONTROL_CHECK = 0x02
    CHANNEL_CONTROL_CHECK = 0x04
    CHANNEL_DATA_CHECK = 0x08
    PROTECTION_CHECK = 0x10
    PROGRAM_CHECK = 0x20
    INCORRECT_LENGTH = 0x40
    INTERMEDIATE_INTERRUPT = 0x80


class SenseReason(enum.IntFlag):
    """First byte of sense data: why a device has set `DeviceStatus.UNIT_CHECK`."""

    OVERRUN = 0x04
    DATA_CHECK = 0x08
    EQUIPMENT_CHECK = 0x10
    BUS_OUT_CHECK = 0x20
    INTERVENTION_REQUIRED = 0x40
    COMMAND_REJECT = 0x80


_NORMAL_DEVICE = DeviceStatus.CHANNEL_END | DeviceStatus.DEVICE_END
_NORMAL_CHANNEL = ChannelStatus.INTERMEDIATE_INTERRUPT


@dataclass(frozen=True, slots=True)
class Scsw:
    """A subchannel-status word, in command mode."""

    condition: int
    """Deferred condition code: 0 started, 1 status was pending, 3 no path."""
    form: int
    """Format of the CCWs."""
    functions: Function
    """Functions under way or ended."""
    activity: Activity
    """What goes on."""
    control: StatusControl
    """Which kinds of status these are."""
    address: int
    """Behind the last CCW that was used."""
    device: DeviceStatus
    """What the device says."""
    channel: ChannelStatus
    """What the channel says."""
    count: int
    """Bytes of the last CCW that were not used."""

    @classmethod
    def decode(cls, data: bytes) -> Scsw:
        """Read 12 bytes.

        Raises:
            MalformedReplyError: another number of bytes.
        """
        _need(data, _SCSW.size, "a status word")
        word, address, device, channel, count = _SCSW.unpack(data)
        return cls(
            condition=word >> 24 & 3,
            form=word >> 23 & 1,
            functions=Function(word >> 12 & 7),
            activity=Activity(word >> 5 & 0x7F),
            control=StatusControl(word & 0x1F),
            address=address,
            device=DeviceStatus(device),
            channel=ChannelStatus(channel),
            count=count,
        )

    @property
    def ended(self) -> bool:
        """Tell whether this is the last status of a function: the device has ended, or something went wrong."""
        return bool(self.control & (StatusControl.SECONDARY | StatusControl.ALERT)) or bool(self.problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is not as it should be after a start, by name; empty when all went well."""
        found = [_name(flag) for flag in DeviceStatus if flag & self.device & ~_NORMAL_DEVICE]
        found += [_name(flag) for flag in ChannelStatus if flag & self.channel & ~_NORMAL_CHANNEL]
        if self.condition == 1:
            found.append("status was pending")
        elif self.condition == 3:
            found.append("no path is operational")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Irb:
    """An interruption-response block: the status, and what the device senses."""

    scsw: Scsw
    """The status word."""
    sense: bytes
    """Sense data that came with the status; empty when none did."""
    raw: bytes
    """All 96 bytes."""

    @classmethod
    def decode(cls, data: bytes) -> Irb:
        """Read 96 bytes.

        Raises:
            MalformedReplyError: another number of bytes.
        """
        _need(data, lib.IRB_AREA_SIZE, "an interruption-response block")
        (report,) = struct.unpack_from(">I", data, 16)
        # Where there is sense data its length is 1 to 32. QEMU puts that elsewhere, so 0 is all that there is room for.
        concurrent, length = report >> 24 & 1, min(report >> 16 & 0x3F or 32, 32)
        return cls(Scsw.decode(data[:12]), data[32 : 32 + length] if concurrent else b"", bytes(data))

    @property
    def reasons(self) -> SenseReason:
        """Why there is a unit check, as far as the first sense byte tells."""
        return SenseReason(self.sense[0] & 0xFC) if self.sense else SenseReason(0)

    def __str__(self) -> str:
        words = ", ".join(self.scsw.problems) or "no problem"
        why = ", ".join(_name(flag) for flag in SenseReason if flag & self.reasons)
        return f"{words}; sense {self.sense.hex()} ({why})" if self.sense else words


@dataclass(frozen=True, slots=True)
class Schib:
    """A subchannel-information block."""

    parameter: int
    """Parameter of the last `Orb`, unless the kernel has its own there."""
    enabled: bool
    """The subchannel takes I/O."""
    valid: bool
    """A device is there."""
    number: int
    """Device number."""
    paths: int
    """Mask of the logical paths."""
    installed: int
    """Mask of the paths that are installed."""
    operational: int
    """Mask of the paths that are operational."""
    available: int
    """Mask of the paths that are available."""
    path_ids: tuple[int, ...]
    """Ids of the eight channel paths."""
    scsw: Scsw
    """The status word."""

    @classmethod
    def decode(cls, data: bytes) -> Schib:
        """Read 52 bytes.

        Raises:
            MalformedReplyError: another number of bytes.
        """
        _need(data, lib.SCHIB_AREA_SIZE, "a subchannel-information block")
        parameter, word, lpm, _, _, pim, _, pom, pam = struct.unpack_from(">IIBBBBHBB", data)
        return cls(
            parameter=parameter,
            enabled=bool(word & 1 << 23),
            valid=bool(word & 1 << 16),
            number=word & 0xFFFF,
            paths=lpm,
            installed=pim,
            operational=pom,
            available=pam,
            path_ids=tuple(data[16:24]),
            scsw=Scsw.decode(bytes(data[28:40])),
        )


class _Source(enum.IntEnum):
    """Where a channel report is from."""

    MONITOR = 2
    SUBCHANNEL = 3
    CHANNEL_PATH = 4
    CONFIGURATION_ALERT = 9
    CHANNEL_SUBSYSTEM = 11


@dataclass(frozen=True, slots=True)
class ChannelReport:
    """A channel-report word: something has become available, or has gone."""

    solicited: bool
    """It was asked for."""
    overflow: bool
    """Others were lost before it."""
    chained: bool
    """The next one belongs to it."""
    source: int
    """Where it is from: 3 a subchannel, 4 a channel path."""
    error: int
    """What has become of it: 2 it was initialized, 3 to 6 it failed, for a time or for good; 8 it is there."""
    identity: int
    """Number of the subchannel or path."""

    @classmethod
    def decode(cls, word: int) -> ChannelReport | None:
        """Read a word; `None` for zero, which says that there is none."""
        if not word:
            return None
        return cls(
            solicited=bool(word & 1 << 30),
            overflow=bool(word & 1 << 29),
            chained=bool(word & 1 << 28),
            source=word >> 24 & 0xF,
            error=word >> 16 & 0x3F,
            identity=word & 0xFFFF,
        )

    def __str__(self) -> str:
        known = {each.value: _name(each) for each in _Source}
        return f"{known.get(self.source, f'source {self.source}')} {self.identity:#x}: code {self.error}"


@dataclass(frozen=True, slots=True)
class SenseId:
    """What a device says that it is: reply of `Command.SENSE_ID`."""

    control_unit: int
    """Type of its control unit: ``0x3832`` for virtio."""
    control_unit_model: int
    """Model of the control unit; for virtio the kind of device."""
    device: int
    """Type of the device; 0 where the control unit says it all."""
    device_model: int
    """Model of the device."""

    @classmethod
    def decode(cls, data: bytes) -> SenseId:
        """Read 4 bytes at least; what is missing of 7 counts as zero.

        Raises:
            MalformedReplyError: it does not begin as such a reply does.
        """
        if len(data) < 4 or data[0] != 0xFF:
            raise MalformedReplyError(f"{data.hex()} is no reply of Sense ID: ff, and 3 bytes or more behind it")
        return cls(*struct.unpack(">xHBHB", data[:7].ljust(7, b"\0")))


def _need(data: bytes, size: int, what: str) -> None:
    if len(data) != size:
        raise MalformedReplyError(f"{what} has {size} bytes, not {len(data)}")


def _name(flag: enum.IntFlag | enum.IntEnum) -> str:
    return (flag.name or str(int(flag))).lower().replace("_", " ")
