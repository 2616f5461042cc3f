"""Bits of the 82576's registers (Intel 82576 GbE Controller Datasheet, chapter 8); registers.py declares the registers.

Everything here is pure. Registers of queue n are found by `RxQueue` and `TxQueue`, for n from 0 to 15.
"""

from __future__ import annotations

import enum

from vfio_user.drivers.igb.registers import IgbRegisterMap
from vfio_user.errors import BoundsError

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
    "EITR",
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
    "interval_of",
]

ALL_ONES = 0xFFFF_FFFF
"""What a register reads as when nothing answers on the bus."""

# Offsets, by the names that the sequences use; what they are says the map.
CTRL = IgbRegisterMap.ctrl.offset
STATUS = IgbRegisterMap.status.offset
EERD = IgbRegisterMap.eerd.offset
CTRL_EXT = IgbRegisterMap.ctrl_ext.offset
MDIC = IgbRegisterMap.mdic.offset
RCTL = IgbRegisterMap.rctl.offset
TCTL = IgbRegisterMap.tctl.offset
ICR = IgbRegisterMap.icr.offset
IMS = IgbRegisterMap.ims.offset
IMC = IgbRegisterMap.imc.offset
GPIE = IgbRegisterMap.gpie.offset
EICS = IgbRegisterMap.eics.offset
EIMS = IgbRegisterMap.eims.offset
EIMC = IgbRegisterMap.eimc.offset
EIAC = IgbRegisterMap.eiac.offset
EIAM = IgbRegisterMap.eiam.offset
EITR = IgbRegisterMap.eitr0.offset
EICR = IgbRegisterMap.eicr.offset
IVAR = IgbRegisterMap.ivar0.offset
IVAR_MISC = IgbRegisterMap.ivar_misc.offset
RLPML = IgbRegisterMap.rlpml.offset
RAL = IgbRegisterMap.ral0.offset
RAH = IgbRegisterMap.rah0.offset
RXCSUM = IgbRegisterMap.rxcsum.offset
MRQC = IgbRegisterMap.mrqc.offset
RETA = IgbRegisterMap.reta0.offset
RSS_KEY = IgbRegisterMap.rssrk0.offset
GCR = IgbRegisterMap.gcr.offset

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
SRRCTL_ONE_BUFFER = 1 << 25
"""SRRCTL.DESCTYPE: advanced descriptors with one buffer (8.10.2)."""

_EITR_SHIFT = 2
_MOST_INTERVAL = 0x1FFF  # microseconds

BMCR = 0
"""Basic control register of the PHY (IEEE 802.3, 22.2.4.1)."""


def interval_of(seconds: float) -> int:
    """Give the value of EITR for an interval between interrupts.

    Raises:
        BoundsError: it is not from 0 to 0.008191.
    """
    microseconds = round(seconds * 1e6) if 0 <= seconds < 1 else -1
    if not 0 <= microseconds <= _MOST_INTERVAL:
        raise BoundsError(f"an interval of {seconds} s between interrupts: give 0 to {_MOST_INTERVAL / 1e6}")
    return microseconds << _EITR_SHIFT


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


_NEXT_QUEUE = 0x40


class RxQueue:
    """Offsets of a receive queue's registers."""

    def __init__(self, number: int) -> None:
        step = _NEXT_QUEUE * number
        self.base_low = IgbRegisterMap.rdbal0.offset + step
        self.base_high = IgbRegisterMap.rdbah0.offset + step
        self.length = IgbRegisterMap.rdlen0.offset + step
        self.split = IgbRegisterMap.srrctl0.offset + step
        self.head = IgbRegisterMap.rdh0.offset + step
        self.tail = IgbRegisterMap.rdt0.offset + step
        self.control = IgbRegisterMap.rxdctl0.offset + step


class TxQueue:
    """Offsets of a transmit queue's registers."""

    def __init__(self, number: int) -> None:
        step = _NEXT_QUEUE * number
        self.base_low = IgbRegisterMap.tdbal0.offset + step
        self.base_high = IgbRegisterMap.tdbah0.offset + step
        self.length = IgbRegisterMap.tdlen0.offset + step
        self.head = IgbRegisterMap.tdh0.offset + step
        self.tail = IgbRegisterMap.tdt0.offset + step
        self.control = IgbRegisterMap.txdctl0.offset + step


STATISTICS: dict[str, tuple[int, int]] = {
    "crc_errors": (IgbRegisterMap.crcerrs.offset, 4),
    "missed": (IgbRegisterMap.mpc.offset, 4),
    "rx_frames": (IgbRegisterMap.gprc.offset, 4),
    "tx_frames": (IgbRegisterMap.gptc.offset, 4),
    "rx_bytes": (IgbRegisterMap.gorcl.offset, 8),
    "tx_bytes": (IgbRegisterMap.gotcl.offset, 8),
    "no_buffers": (IgbRegisterMap.rnbc.offset, 4),
    "undersized": (IgbRegisterMap.ruc.offset, 4),
    "oversized": (IgbRegisterMap.roc.offset, 4),
}
"""Offset and bytes of counters that reading clears; 8 bytes are two registers."""
