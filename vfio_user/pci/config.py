"""PCI configuration space: named header fields, capabilities, extended capabilities."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from vfio_user.device.region import Region
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, MalformedReplyError

__all__ = [
    "Capability",
    "CapabilityId",
    "Command",
    "ConfigSpace",
    "ExtendedCapability",
    "ExtendedCapabilityId",
    "Status",
]

_FORMATS = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I")}
_FIRST_EXTENDED = 0x100


class Command(enum.IntFlag):
    """Bits of the command register (PCI Local Bus 3.0, 6.2.2)."""

    IO = 1 << 0
    """Answer in I/O space."""
    MEMORY = 1 << 1
    """Answer in memory space."""
    MASTER = 1 << 2
    """May start transactions: DMA and message-signalled interrupts."""
    PARITY = 1 << 6
    """Report parity errors."""
    SERR = 1 << 8
    """Report system errors."""
    INTX_DISABLE = 1 << 10
    """Send no INTx."""


class Status(enum.IntFlag):
    """Bits of the status register (PCI Local Bus 3.0, 6.2.3)."""

    INTERRUPT = 1 << 3
    """INTx is pending."""
    CAPABILITIES = 1 << 4
    """There is a capability list."""
    MASTER_DATA_PARITY = 1 << 8
    """A parity error happened on a transfer that it started."""
    SIGNALED_TARGET_ABORT = 1 << 11
    """It ended a transaction with an abort."""
    RECEIVED_TARGET_ABORT = 1 << 12
    """A transaction that it started was aborted by its target."""
    RECEIVED_MASTER_ABORT = 1 << 13
    """A transaction that it started had no target."""
    SIGNALED_SYSTEM_ERROR = 1 << 14
    """It reported a system error."""
    DETECTED_PARITY_ERROR = 1 << 15
    """It saw a parity error."""


class CapabilityId(enum.IntEnum):
    """Ids of capabilities (PCI Code and ID Assignment 1.11, 2)."""

    POWER_MANAGEMENT = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOT_ID = 0x04
    MSI = 0x05
    HOT_SWAP = 0x06
    PCI_X = 0x07
    HYPER_TRANSPORT = 0x08
    VENDOR = 0x09
    DEBUG_PORT = 0x0A
    SUBSYSTEM = 0x0D
    EXPRESS = 0x10
    MSIX = 0x11
    SATA = 0x12
    ADVANCED_FEATURES = 0x13
    ENHANCED_ALLOCATION = 0x14


class ExtendedCapabilityId(enum.IntEnum):
    """Ids of extended capabilities (PCI Code and ID Assignment 1.11, 3)."""

    AER = 0x01
    VIRTUAL_CHANNEL = 0x02
    SERIAL_NUMBER = 0x03
    POWER_BUDGET = 0x04
    VENDOR = 0x0B
    ACS = 0x0D
    ARI = 0x0E
    ATS = 0x0F
    SRIOV = 0x10
    PRI = 0x13
    RESIZABLE_BAR = 0x15
    DPA = 0x16
    TPH = 0x17
    LTR = 0x18
    SECONDARY_EXPRESS = 0x19
    PASID = 0x1B
    DPC = 0x1D
    L1_SUBSTATES = 0x1E
    PTM = 0x1F
    DVSEC = 0x23
    DATA_LINK_FEATURE = 0x25
    PHYSICAL_16GT = 0x26
    LANE_MARGINING = 0x27
    DOE = 0x2E


@dataclass(frozen=True, slots=True)
class Capability:
    """One element of the capability list."""

    identity: int
    """Its id; `CapabilityId` names the common ones."""
    offset: int
    """Where its header is in configuration space."""

    @property
    def name(self) -> str:
        """Its name, or its id in hexadecimal."""
        return _name(CapabilityId, self.identity)


@dataclass(frozen=True, slots=True)
class ExtendedCapability:
    """One element of the extended capability list."""

    identity: int
    """Its id; `ExtendedCapabilityId` names the common ones."""
    version: int
    """Its version, 4 bits."""
    offset: int
    """Where its header is in configuration space, 0x100 or above."""

    @property
    def name(self) -> str:
        """Its name, or its id in hexadecimal."""
        return _name(ExtendedCapabilityId, self.identity)


class ConfigSpace:
    """The configuration space of a PCI device, as the kernel shows it through VFIO.

    The kernel virtualises some of it: BARs can be sized but not moved, MSI and MSI-X are set up by
    `vfio_user.device.irq`, not by writing their capabilities.

    Lifetime:
        Lives as long as its device.
    Locking:
        Each access is one system call. Writes and `set_command` are kept apart from each other and from resets by the
        device's `ConfigGuard`; other sequences of read, modify and write are for the caller to keep apart.

    A write that takes the device's memory away (memory decoding off, D3) waits for who is inside of `Region.access`;
    one that gives it back maps it again; one that starts a function-level reset is a `PciDevice.reset`.
    """

    def __init__(self, region: Region, alone: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Give a face to the region that is the configuration space; ``alone`` keeps other writers out."""
        self._region = region
        self._alone = alone

    @property
    def size(self) -> int:
        """Bytes: 256, or 4096 for PCI Express and PCI-X 2.0."""
        return self._region.size

    # -- accesses

    def read8(self, offset: int) -> int:
        """Read one byte."""
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        """Read 16 bits, little-endian; the offset is even."""
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        """Read 32 bits, little-endian; the offset is a multiple of 4."""
        return self._read(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        """Write one byte."""
        self._write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Write 16 bits, little-endian; the offset is even."""
        self._write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Write 32 bits, little-endian; the offset is a multiple of 4."""
        self._write(offset, 4, value)

    def dump(self, size: int | None = None) -> bytes:
        """Read all of it, or the first ``size`` bytes."""
        return self._region.pread(0, self.size if size is None else size)

    def _check(self, offset: int, width: int) -> None:
        if not 0 <= offset <= self.size - width:
            raise BoundsError(f"offset {offset:#x}, width {width}: configuration space has {self.size:#x} bytes")
        if offset % width:
            raise AlignmentError(f"offset {offset:#x} is not a multiple of the width {width}")

    def _read(self, offset: int, width: int) -> int:
        self._check(offset, width)
        value: int = _FORMATS[width].unpack(self._region.pread(offset, width))[0]
        return value

    def _write(self, offset: int, width: int, value: int) -> None:
        self._check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise BoundsError(f"value {value:#x} does not fit {8 * width} bits")
        self._region.pwrite(offset, _FORMATS[width].pack(value))

    # -- the standard header (PCI Local Bus 3.0, 6.1)

    @property
    def vendor_id(self) -> int:
        """Vendor id, 16 bits; 0xFFFF when the device does not answer."""
        return self.read16(0x00)

    @property
    def device_id(self) -> int:
        """Device id, 16 bits."""
        return self.read16(0x02)

    @property
    def command(self) -> Command:
        """Command register."""
        return Command(self.read16(0x04))

    @command.setter
    def command(self, value: int) -> None:
        self.write16(0x04, value)

    @property
    def status(self) -> Status:
        """Status register."""
        return Status(self.read16(0x06))

    @property
    def revision(self) -> int:
        """Revision id."""
        return self.read8(0x08)

    @property
    def class_code(self) -> int:
        """Class code, 24 bits: base class, sub-class, programming interface."""
        return self.read32(0x08) >> 8

    @property
    def cache_line_size(self) -> int:
        """Cache line size in units of 4 bytes."""
        return self.read8(0x0C)

    @property
    def header_type(self) -> int:
        """Header layout, 7 bits: 0 for a device, 1 for a bridge."""
        return self.read8(0x0E) & 0x7F

    @property
    def multi_function(self) -> bool:
        """Whether the slot has more than one function."""
        return bool(self.read8(0x0E) & 0x80)

    @property
    def bars(self) -> tuple[int, ...]:
        """The six base address registers as they read, not decoded."""
        return tuple(self.read32(0x10 + 4 * number) for number in range(6))

    @property
    def subsystem_vendor_id(self) -> int:
        """Subsystem vendor id."""
        return self.read16(0x2C)

    @property
    def subsystem_id(self) -> int:
        """Subsystem id."""
        return self.read16(0x2E)

    @property
    def interrupt_line(self) -> int:
        """Interrupt line, as firmware left it."""
        return self.read8(0x3C)

    @property
    def interrupt_pin(self) -> int:
        """INTx pin: 1 to 4 for A to D, 0 for none."""
        return self.read8(0x3D)

    def set_command(self, *, enable: int = 0, disable: int = 0) -> None:
        """Set and clear bits of the command register."""
        with self._alone():
            before = int(self.command)
            after = (before | enable) & ~disable & 0xFFFF
            if after != before:
                self.command = Command(after)

    # -- capabilities

    def capabilities(self) -> Iterator[Capability]:
        """Walk the capability list.

        Raises:
            MalformedReplyError: the list leaves its bounds or runs in a circle.
        """
        if not self.status & Status.CAPABILITIES:
            return
        seen: set[int] = set()
        offset = self.read8(0x34) & ~3
        while offset:
            if not 0x40 <= offset <= 0xFC or offset in seen:
                raise MalformedReplyError(f"the capability list goes to {offset:#x}, in a circle or out of bounds")
            seen.add(offset)
            header = self.read16(offset)
            if header & 0xFF == 0xFF:
                return  # the device does not answer
            if header & 0xFF:  # 0 is a capability that says nothing
                yield Capability(header & 0xFF, offset)
            offset = header >> 8 & ~3

    def extended_capabilities(self) -> Iterator[ExtendedCapability]:
        """Walk the extended capability list; there is none in a configuration space of 256 bytes.

        Raises:
            MalformedReplyError: the list leaves its bounds or runs in a circle.
        """
        if self.size <= _FIRST_EXTENDED:
            return
        seen: set[int] = set()
        offset = _FIRST_EXTENDED
        while offset:
            if not _FIRST_EXTENDED <= offset <= self.size - 4 or offset in seen:
                raise MalformedReplyError(
                    f"the extended capability list goes to {offset:#x}, in a circle or out of bounds"
                )
            seen.add(offset)
            header = self.read32(offset)
            if header == 0xFFFFFFFF:
                return  # the device does not answer
            # An empty list is a header of zeros. One with an id of 0 only leads on: so the kernel hides the first.
            if header & 0xFFFF:
                yield ExtendedCapability(header & 0xFFFF, header >> 16 & 0xF, offset)
            offset = header >> 20 & ~3

    def find(self, identity: CapabilityId | ExtendedCapabilityId) -> int | None:
        """Give the offset of the first capability with an id; `None` when there is none.

        Raises:
            ArgumentError: it is neither a `CapabilityId` nor an `ExtendedCapabilityId`.
        """
        if isinstance(identity, ExtendedCapabilityId):
            return next((each.offset for each in self.extended_capabilities() if each.identity == identity), None)
        if isinstance(identity, CapabilityId):
            return next((each.offset for each in self.capabilities() if each.identity == identity), None)
        raise ArgumentError(f"{identity!r}: pass a CapabilityId or an ExtendedCapabilityId, their numbers overlap")

    def __repr__(self) -> str:
        return f"<ConfigSpace {self.size} bytes>"


def _name(names: type[enum.IntEnum], identity: int) -> str:
    try:
        return names(identity).name.replace("_", " ").lower()
    except ValueError:
        return f"{identity:#x}"
