"""Opcodes and selectors of the commands that the driver knows.

Section numbers are those of NVMe Base 2.0, or of the NVM Command Set 1.0 where "NVM" stands before them.
"""

from __future__ import annotations

import enum

__all__ = ["AdminOpcode", "Cns", "FeatureId", "IoOpcode", "LogPageId", "opcode_name"]


class AdminOpcode(enum.IntEnum):
    """Opcodes of admin commands (5)."""

    DELETE_SQ = 0x00
    """Delete I/O Submission Queue (5.7)."""
    CREATE_SQ = 0x01
    """Create I/O Submission Queue (5.5)."""
    GET_LOG_PAGE = 0x02
    """Get Log Page (5.16)."""
    DELETE_CQ = 0x04
    """Delete I/O Completion Queue (5.6)."""
    CREATE_CQ = 0x05
    """Create I/O Completion Queue (5.4)."""
    IDENTIFY = 0x06
    """Identify (5.17)."""
    ABORT = 0x08
    """Abort (5.1)."""
    SET_FEATURES = 0x09
    """Set Features (5.27)."""
    GET_FEATURES = 0x0A
    """Get Features (5.15)."""
    ASYNC_EVENT_REQUEST = 0x0C
    """Asynchronous Event Request (5.2)."""


class IoOpcode(enum.IntEnum):
    """Opcodes of I/O commands (7, NVM 3.2)."""

    FLUSH = 0x00
    """Flush (7.1)."""
    WRITE = 0x01
    """Write (NVM 3.2.6)."""
    READ = 0x02
    """Read (NVM 3.2.4)."""
    WRITE_UNCORRECTABLE = 0x04
    """Write Uncorrectable (NVM 3.2.7)."""
    COMPARE = 0x05
    """Compare (NVM 3.2.1)."""
    WRITE_ZEROES = 0x08
    """Write Zeroes (NVM 3.2.8)."""
    DATASET_MANAGEMENT = 0x09
    """Dataset Management (NVM 3.2.3)."""


class Cns(enum.IntEnum):
    """What Identify asks for (5.17.1)."""

    NAMESPACE = 0x00
    """Identify Namespace, NVM command set."""
    CONTROLLER = 0x01
    """Identify Controller."""
    ACTIVE_NAMESPACES = 0x02
    """Active Namespace ID list."""
    NAMESPACE_DESCRIPTORS = 0x03
    """Namespace Identification Descriptor list."""


class FeatureId(enum.IntEnum):
    """Features that Get Features and Set Features know (5.27.1)."""

    ARBITRATION = 0x01
    """Arbitration."""
    POWER_MANAGEMENT = 0x02
    """Power Management."""
    TEMPERATURE_THRESHOLD = 0x04
    """Temperature Threshold."""
    VOLATILE_WRITE_CACHE = 0x06
    """Volatile Write Cache: bit 0 enables it."""
    NUM_QUEUES = 0x07
    """Number of Queues: submission 15:0, completion 31:16, both minus one (5.27.1.5)."""
    INTERRUPT_COALESCING = 0x08
    """Interrupt Coalescing (5.27.1.6)."""
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    """Interrupt Vector Configuration: vector 15:0, no coalescing 16 (5.27.1.7)."""
    ASYNC_EVENT_CONFIGURATION = 0x0B
    """Asynchronous Event Configuration."""


class LogPageId(enum.IntEnum):
    """Log pages (5.16.1)."""

    ERROR_INFORMATION = 0x01
    """Error Information (5.16.1.2)."""
    SMART = 0x02
    """SMART / Health Information (5.16.1.3)."""
    FIRMWARE_SLOT = 0x03
    """Firmware Slot Information (5.16.1.4)."""


def opcode_name(opcode: int, *, admin: bool) -> str:
    """Spell an opcode for a person: ``"write zeroes"``, or its number."""
    table: type[enum.IntEnum] = AdminOpcode if admin else IoOpcode
    try:
        return table(opcode).name.lower().replace("_", " ")
    except ValueError:
        return f"opcode {opcode:#04x}"
