"""Registers of the 82576 in BAR 0, and their bits (Intel 82576 GbE Controller Datasheet, chapter 8).

Everything here is pure. Registers have 32 bits. Those of queue n are found by functions, for n from 0 to 15.
"""

from __future__ import annotations

import enum

__all__ = [
    "ALL_ONES",
    "BMCR",
    "CTRL",
    "CTRL_EXT",
    "EERD",
    "EIAC",
    "EIAM",
    "EICR",
    "EICS",
    "EIMC",
    "EIMS",
    "GCR",
    "GPIE",
    "ICR",
    "IMC",
    "IMS",
    "IVAR",
    "IVAR_MISC",
    "MDIC",
    "MRQC",
    "QUEUE_ENABLE",
    "RAH",
    "RAL",
    "RCTL",
    "RETA",
    "RLPML",
    "RSS_KEY",
    "RXCSUM",
    "STATISTICS",
    "STATUS",
    "TCTL",
    "BasicControl",
    "Cause",
    "Control",
    "Eerd",
    "Mdic",
    "ReceiveControl",
    "RxQueue",
    "Status",
    "TransmitControl",
    "TxQueue",
]

ALL_ONES = 0xFFFF_FFFF
"""What a register reads as when nothing answers on the bus."""

CTRL = 0x0000
"""Device Control (8.2.1)."""
STATUS = 0x0008
"""Device Status (8.2.2)."""
EERD = 0x0014
"""EEPROM Read."""
CTRL_EXT = 0x0018
"""Extended Device Control."""
MDIC = 0x0020
"""MDI Control: registers of the PHY."""
RCTL = 0x0100
"""Receive Control (8.10.1)."""
TCTL = 0x0400
"""Transmit Control."""
ICR = 0x1500
"""Interrupt Cause; reading clears it."""
IMS = 0x1508
"""Interrupt Mask Set."""
IMC = 0x150C
"""Interrupt Mask Clear."""
GPIE = 0x1514
"""General Purpose Interrupt Enable (7.3.2.11)."""
EICS = 0x1520
"""Extended Interrupt Cause Set: vectors, one bit each, raised by software."""
EIMS = 0x1524
"""Extended Interrupt Mask Set."""
EIMC = 0x1528
"""Extended Interrupt Mask Clear."""
EIAC = 0x152C
"""Extended Interrupt Auto Clear: vectors whose cause goes away when they are sent (8.8.5)."""
EIAM = 0x1530
"""Extended Interrupt Auto Mask (8.8.6)."""
EICR = 0x1580
"""Extended Interrupt Cause."""
IVAR = 0x1700
"""Interrupt Vector Allocation: of RX queue n in byte 0, of TX queue n in byte 1 of entry n, for n below 8 (8.8.13)."""
IVAR_MISC = 0x1740
"""The vector of all other causes, in byte 1."""
RLPML = 0x5004
"""Receive Long Packet Maximum Length, checksum included."""
RAL = 0x5400
"""Receive Address, low four bytes."""
RAH = 0x5404
"""Receive Address, high two bytes."""
RXCSUM = 0x5000
"""Receive Checksum Control."""
MRQC = 0x5818
"""Multiple Receive Queues Command."""
RETA = 0x5C00
"""Redirection Table: 128 bytes, a queue each."""
RSS_KEY = 0x5C80
"""The key of receive-side scaling, 40 bytes."""
GCR = 0x5B00
"""PCIe Control (8.6.1)."""

QUEUE_ENABLE = 1 << 25
"""RXDCTL.ENABLE and TXDCTL.ENABLE (8.10.10, 8.12.13)."""
RSS_BY_ADDRESS = 0x2 | 1 << 16 | 1 << 17 | 1 << 22
"""MRQC: spread over queues by a hash of IPv4 addresses, and of ports for TCP and UDP."""
RXCSUM_NO_PACKET_CHECKSUM = 1 << 13
"""RXCSUM.PCSD: the descriptor has the hash instead of a checksum, which receive-side scaling needs."""
GPIE_VECTORS = 1 << 4
"""GPIE.Multiple_MSIX: causes go to vectors as IVAR says."""
IVAR_VALID = 0x80
"""Of each byte of IVAR."""
GCR_RESEND = 1 << 16
"""GCR.Completion_Timeout_Resend: a read that is not answered is tried for ever."""
CTRL_EXT_DRIVER_LOADED = 1 << 28
"""CTRL_EXT.DRV_LOAD: tells firmware that a driver has it."""
RAH_VALID = 1 << 31
"""RAH.AV."""
SRRCTL_ONE_BUFFER = 1 << 25
"""SRRCTL.DESCTYPE: advanced descriptors with one buffer (8.10.2)."""

BMCR = 0
"""Basic control register of the PHY (IEEE 802.3, 22.2.4.1)."""


class Control(enum.IntFlag):
    """Bits of CTRL."""

    FULL_DUPLEX = 1 << 0
    MASTER_DISABLE = 1 << 2
    SET_LINK_UP = 1 << 6
    SPEED_1000 = 2 << 8
    FORCE_SPEED = 1 << 11
    FORCE_DUPLEX = 1 << 12
    RESET = 1 << 26


class Status(enum.IntFlag):
    """Bits of STATUS."""

    FULL_DUPLEX = 1 << 0
    LINK_UP = 1 << 1
    FUNCTION = 3 << 2
    SPEED = 3 << 6
    MASTER_ENABLED = 1 << 19


class ReceiveControl(enum.IntFlag):
    """Bits of RCTL."""

    ENABLE = 1 << 1
    UNICAST_PROMISCUOUS = 1 << 3
    MULTICAST_PROMISCUOUS = 1 << 4
    LONG_PACKETS = 1 << 5
    MAC_LOOPBACK = 1 << 6
    BROADCAST = 1 << 15
    STRIP_CHECKSUM = 1 << 26


class TransmitControl(enum.IntFlag):
    """Bits of TCTL."""

    ENABLE = 1 << 1
    PAD_SHORT = 1 << 3


class Cause(enum.IntFlag):
    """Bits of ICR and its masks."""

    LINK_CHANGED = 1 << 2


class Eerd(enum.IntFlag):
    """Bits of EERD; the address is at bit 2, the data at bit 16."""

    START = 1 << 0
    DONE = 1 << 1


class Mdic(enum.IntFlag):
    """Bits of MDIC; the data is at bit 0, the register at bit 16."""

    PHY_1 = 1 << 21
    WRITE = 1 << 26
    READ = 2 << 26
    READY = 1 << 28
    ERROR = 1 << 30


class BasicControl(enum.IntFlag):
    """Bits of the PHY's basic control register."""

    SPEED_1000 = 1 << 6
    FULL_DUPLEX = 1 << 8
    RESTART = 1 << 9
    NEGOTIATE = 1 << 12
    LOOPBACK = 1 << 14


class RxQueue:
    """Offsets of a receive queue's registers."""

    def __init__(self, number: int) -> None:
        base = 0xC000 + 0x40 * number
        self.base_low = base
        self.base_high = base + 0x04
        self.length = base + 0x08
        self.split = base + 0x0C
        self.head = base + 0x10
        self.tail = base + 0x18
        self.control = base + 0x28


class TxQueue:
    """Offsets of a transmit queue's registers."""

    def __init__(self, number: int) -> None:
        base = 0xE000 + 0x40 * number
        self.base_low = base
        self.base_high = base + 0x04
        self.length = base + 0x08
        self.head = base + 0x10
        self.tail = base + 0x18
        self.control = base + 0x28


STATISTICS: dict[str, tuple[int, int]] = {
    "crc_errors": (0x4000, 4),
    "missed": (0x4010, 4),
    "rx_frames": (0x4074, 4),
    "tx_frames": (0x4080, 4),
    "rx_bytes": (0x4088, 8),
    "tx_bytes": (0x4090, 8),
    "no_buffers": (0x40A0, 4),
    "undersized": (0x40A4, 4),
    "oversized": (0x40AC, 4),
}
"""Offset and bytes of counters that reading clears; 8 bytes are two registers, and the high one clears both."""
