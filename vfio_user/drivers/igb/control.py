"""Switching an 82576 on and off through its registers (Intel 82576 GbE Controller Datasheet, chapters 3 to 8)."""

from __future__ import annotations

import contextlib
import struct
import time

from vfio_user.device.region import Region
from vfio_user.drivers.igb import regs
from vfio_user.drivers.igb.errors import IgbDeadlineError
from vfio_user.drivers.igb.regs import (
    BasicControl,
    Cause,
    Control,
    Eerd,
    Mdic,
    ReceiveControl,
    RxQueue,
    Status,
    TransmitControl,
    TxQueue,
)
from vfio_user.drivers.igb.rings import DESCRIPTOR_SIZE, RxRing, TxRing
from vfio_user.errors import BoundsError, DeadlineError, DeviceGoneError

__all__ = ["IgbRegisters"]

_EEPROM_WORDS = 0x4000
_RESET_TIMEOUT = 0.5
_SHORT_TIMEOUT = 0.1
_RX_THRESHOLDS = 8 | 8 << 8 | 1 << 16  # prefetch, host, write-back: at once
_TX_THRESHOLDS = 8 | 1 << 8
_RSS_KEY = struct.pack("<10I", *(0x6D5A56DA + 0x255B0EC2 * n & 0xFFFF_FFFF for n in range(10)))


class IgbRegisters:
    """The registers of a controller, and the sequences that its datasheet asks for.

    Lifetime:
        As long as the device.
    Locking:
        Reading the link may be done by any thread; the caller serialises the rest.
    """

    def __init__(self, bar: Region, name: str) -> None:
        """Take BAR 0; nothing is touched."""
        self.bar = bar
        """BAR 0."""
        self.name = name
        """Name of the controller, for messages."""

    # -- what it is

    def status(self) -> Status:
        """Read STATUS.

        Raises:
            DeviceGoneError: it reads as all-ones.
        """
        value = self.bar.read32(regs.STATUS)
        if value == regs.ALL_ONES:
            raise DeviceGoneError(
                f"{self.name} reads as all-ones: it was unplugged, lost power, or its memory decoding is off"
            )
        return Status(value)

    def link_up(self) -> bool:
        """Tell whether the link is up (STATUS.LU)."""
        return bool(self.status() & Status.LINK_UP)

    def mac(self) -> bytes:
        """Read the station address, which the controller has loaded from its EEPROM (RAL0, RAH0)."""
        low, high = self.bar.read32(regs.RAL), self.bar.read32(regs.RAH)
        return struct.pack("<IH", low, high & 0xFFFF)

    def read_eeprom(self, word: int) -> int:
        """Read a word of the EEPROM: 16 bits (EERD).

        Raises:
            BoundsError: there is no such word.
            IgbDeadlineError: the EEPROM does not answer.
        """
        if not 0 <= word < _EEPROM_WORDS:
            raise BoundsError(f"{self.name} has no EEPROM word {word:#x}; give 0 to {_EEPROM_WORDS - 1:#x}")
        self.bar.write32(regs.EERD, word << 2 | Eerd.START)
        return self._wait(regs.EERD, Eerd.DONE, Eerd.DONE, _SHORT_TIMEOUT, "read its EEPROM") >> 16

    def clear_counters(self) -> dict[str, int]:
        """Read the counters since they were last read, by the names in `regs.STATISTICS`."""
        values = {}
        for name, (offset, size) in regs.STATISTICS.items():
            values[name] = self.bar.read32(offset)
            if size == 8:
                values[name] |= self.bar.read32(offset + 4) << 32
        return values

    # -- reset and link

    def reset(self) -> None:
        """Reset everything but PCIe (4.2.1.6.1): no DMA, no interrupts afterwards.

        Raises:
            IgbDeadlineError: it does not come back.
            DeviceGoneError: it reads as all-ones.
        """
        self.status()
        self.quiesce()
        self.bar.write32(regs.CTRL, self.bar.read32(regs.CTRL) | Control.RESET)
        time.sleep(0.001)  # the registers must be left alone for so long
        self._wait(regs.CTRL, Control.RESET, 0, _RESET_TIMEOUT, "come back from a reset")
        self.status()
        self._mask_interrupts()

    def claim(self) -> None:
        """Tell firmware that a driver has it now, and let a read of memory that fails be failed (8.6.1)."""
        self.bar.write32(regs.CTRL_EXT, self.bar.read32(regs.CTRL_EXT) | regs.CTRL_EXT_DRIVER_LOADED)
        self.bar.write32(regs.GCR, self.bar.read32(regs.GCR) & ~regs.GCR_RESEND)

    def quiesce(self) -> None:
        """Stop receiver, transmitter and interrupts, and wait until no DMA is under way (5.2.3.3)."""
        self._mask_interrupts()
        self.bar.write32(regs.RCTL, 0)
        self.bar.write32(regs.TCTL, 0)
        control = self.bar.read32(regs.CTRL)
        self.bar.write32(regs.CTRL, control | Control.MASTER_DISABLE)
        with contextlib.suppress(DeadlineError):  # the reset that follows ends it for good
            self.bar.poll_until(regs.STATUS, Status.MASTER_ENABLED, 0, _SHORT_TIMEOUT)
        self.bar.write32(regs.CTRL, control & ~Control.MASTER_DISABLE)

    def start_link(self) -> None:
        """Let the PHY negotiate a link; the link interrupt tells when it is up."""
        self.bar.write32(regs.CTRL, self.bar.read32(regs.CTRL) | Control.SET_LINK_UP)
        self.write_phy(regs.BMCR, BasicControl.NEGOTIATE | BasicControl.RESTART)

    def start_loopback(self) -> None:
        """Have the PHY give back what is sent (3.5.6.3.1); the link is up without a partner.

        QEMU has no loopback in its PHY, but one in the MAC (RCTL), which the hardware lacks; and there the link is up
        after a negotiation only. So both are switched on, and a negotiation is begun, which hardware does not finish.
        """
        self.write_phy(regs.BMCR, BasicControl.NEGOTIATE | BasicControl.RESTART)
        self.write_phy(regs.BMCR, BasicControl.LOOPBACK | BasicControl.SPEED_1000 | BasicControl.FULL_DUPLEX)
        forced = Control.FORCE_SPEED | Control.FORCE_DUPLEX | Control.SPEED_1000 | Control.FULL_DUPLEX
        control = self.bar.read32(regs.CTRL) & ~(3 << 8)
        self.bar.write32(regs.CTRL, control | forced | Control.SET_LINK_UP)

    def read_phy(self, register: int) -> int:
        """Read a register of the PHY: 16 bits.

        Raises:
            IgbDeadlineError: the PHY does not answer.
        """
        return self._mdic(Mdic.READ | register << 16) & 0xFFFF

    def write_phy(self, register: int, value: int) -> None:
        """Write a register of the PHY. Raises as `read_phy`."""
        self._mdic(Mdic.WRITE | register << 16 | value)

    # -- queues and interrupts

    def set_receive_queue(self, number: int, ring: RxRing, buffer_size: int) -> None:
        """Name a receive ring (4.5.9); it works once `start` was called, and takes its tail then.

        Args:
            number: of the queue.
            ring: what it uses.
            buffer_size: of each buffer: a multiple of 1024 bytes.
        """
        queue, write = RxQueue(number), self.bar.write32
        write(queue.control, 0)
        write(queue.base_low, ring.iova & 0xFFFF_FFFF)
        write(queue.base_high, ring.iova >> 32)
        write(queue.length, ring.entries * DESCRIPTOR_SIZE)
        write(queue.split, regs.SRRCTL_ONE_BUFFER | buffer_size >> 10)
        write(queue.head, 0)
        write(queue.tail, 0)
        write(queue.control, regs.QUEUE_ENABLE | _RX_THRESHOLDS)

    def set_transmit_queue(self, number: int, ring: TxRing) -> None:
        """Name a transmit ring (4.5.10)."""
        queue, write = TxQueue(number), self.bar.write32
        write(queue.control, 0)
        write(queue.base_low, ring.iova & 0xFFFF_FFFF)
        write(queue.base_high, ring.iova >> 32)
        write(queue.length, ring.entries * DESCRIPTOR_SIZE)
        write(queue.head, 0)
        write(queue.tail, 0)
        write(queue.control, regs.QUEUE_ENABLE | _TX_THRESHOLDS)

    def spread(self, queues: int) -> None:
        """Spread received IPv4 flows over the first ``queues`` queues (7.1.1.7); all else goes to queue 0."""
        if queues == 1:
            return
        for entry in range(0, 128, 4):
            places = struct.pack("4B", *((entry + n) % queues for n in range(4)))
            self.bar.write32(regs.RETA + entry, int.from_bytes(places, "little"))
        for offset in range(0, len(_RSS_KEY), 4):
            self.bar.write32(regs.RSS_KEY + offset, int.from_bytes(_RSS_KEY[offset : offset + 4], "little"))
        self.bar.write32(regs.RXCSUM, regs.RXCSUM_NO_PACKET_CHECKSUM)
        self.bar.write32(regs.MRQC, regs.RSS_BY_ADDRESS)

    def start(self, queues: int, receive: ReceiveControl, longest: int) -> None:
        """Switch receiver and transmitter on, and wait until their queues are.

        Args:
            queues: number of receive and transmit queues.
            receive: what to accept; enabling, and stripping the checksum, is added.
            longest: bytes of the longest frame, checksum included.

        Raises:
            IgbDeadlineError: a queue does not start.
        """
        self.bar.write32(regs.RLPML, longest)
        self.bar.write32(regs.RCTL, receive | ReceiveControl.ENABLE | ReceiveControl.STRIP_CHECKSUM)
        self.bar.write32(regs.TCTL, TransmitControl.ENABLE | TransmitControl.PAD_SHORT)
        for number in range(queues):
            for control in (RxQueue(number).control, TxQueue(number).control):
                self._wait(control, regs.QUEUE_ENABLE, regs.QUEUE_ENABLE, _SHORT_TIMEOUT, "start a queue")

    def route_interrupts(self, rx: list[int], tx: list[int], link: int) -> None:
        """Give each cause its MSI-X vector, and let them through (7.3.1.2): of each queue, and of the link."""
        bar, valid = self.bar, regs.IVAR_VALID
        bar.write32(regs.GPIE, regs.GPIE_VECTORS)
        for number, (receive, transmit) in enumerate(zip(rx, tx, strict=True)):
            bar.write32(regs.IVAR + 4 * number, receive | valid | (transmit | valid) << 8)
        bar.write32(regs.IVAR_MISC, (link | valid) << 8)
        vectors = sum(1 << vector for vector in {*rx, *tx, link})
        bar.write32(regs.EIAC, vectors)
        bar.write32(regs.EIAM, 0)
        bar.write32(regs.EICR, vectors)
        bar.read32(regs.ICR)
        bar.write32(regs.IMS, Cause.LINK_CHANGED)
        bar.write32(regs.EIMS, vectors)

    def set_intervals(self, interval: int, vectors: int) -> None:
        """Give the first ``vectors`` vectors an interval between interrupts (7.3.4.1): a value of EITR."""
        for vector in range(vectors):
            self.bar.write32(regs.EITR + 4 * vector, interval)

    def raise_interrupts(self, vectors: int) -> None:
        """Send the vectors of a bit mask, as if their causes had happened (EICS)."""
        self.bar.write32(regs.EICS, vectors)

    def acknowledge(self) -> Cause:
        """Read and clear the causes that have no vector of their own (ICR)."""
        return Cause(self.bar.read32(regs.ICR))

    # -- inside

    def _mask_interrupts(self) -> None:
        self.bar.write32(regs.IMC, regs.ALL_ONES)
        self.bar.write32(regs.EIMC, regs.ALL_ONES)

    def _mdic(self, command: int) -> int:
        self.bar.write32(regs.MDIC, command | Mdic.PHY_1)
        answer = self._wait(regs.MDIC, Mdic.READY, Mdic.READY, _SHORT_TIMEOUT, "reach its PHY")
        if answer & Mdic.ERROR:
            raise IgbDeadlineError(f"{self.name}: the PHY did not answer on its bus (MDIC {answer:#010x})")
        return answer

    def _wait(self, register: int, mask: int, equals: int, timeout: float, what: str) -> int:
        try:
            return self.bar.poll_until(register, mask, equals, timeout)
        except DeadlineError as error:
            raise IgbDeadlineError(f"{self.name} did not {what} within {timeout:g} s: {error}") from None
