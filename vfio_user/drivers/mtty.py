"""The kernel's sample of a mediated device: one or two serial ports that loop back what they are sent.

Each port is a 16550 UART of eight byte-wide registers; what is transmitted comes out of the receiver, through one FIFO
of 16 bytes. Sources: ``samples/vfio-mdev/mtty.c``; the registers are those of the PC16550D data sheet.
"""

from __future__ import annotations

import enum
import threading
import time
from dataclasses import dataclass

from vfio_user.addresses import PciId
from vfio_user.device.region import Region
from vfio_user.device.vector import IrqVector
from vfio_user.drivers.base import DriverBase
from vfio_user.drivers.waiting import Waiter, deadline_of
from vfio_user.errors import ArgumentError, BoundsError, ClosedError, DeadlineError, UnsupportedError, VfioError
from vfio_user.mdev.device import MdevDevice

__all__ = [
    "FifoControl",
    "InterruptEnable",
    "LineControl",
    "LineStatus",
    "ModemControl",
    "Mtty",
    "SerialPort",
    "SerialState",
]

RX, TX, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 0, 1, 2, 2, 3, 4, 5, 6, 7
DLL, DLM = 0, 1  # while LineControl.DIVISOR is set

_BASE_BAUD = 115200
_CHUNK = 15
"""Bytes that are sent at a time: mtty takes a FIFO of 16 bytes that is full for one that is empty."""
_NAP = 1e-3


class InterruptEnable(enum.IntFlag):
    """Bits of the interrupt enable register (PC16550D, 8.7)."""

    DATA = 1 << 0
    """Data was received."""
    TRANSMITTER = 1 << 1
    """The transmitter is empty."""
    LINE = 1 << 2
    """Overrun and its kin."""
    MODEM = 1 << 3
    """Modem lines."""


class FifoControl(enum.IntFlag):
    """Bits of the FIFO control register (PC16550D, 8.5)."""

    ENABLE = 1 << 0
    """Use the FIFO; else it holds one byte."""
    CLEAR_RECEIVER = 1 << 1
    """Forget what was received."""
    CLEAR_TRANSMITTER = 1 << 2
    """Forget what was not sent yet."""


class LineControl(enum.IntFlag):
    """Bits of the line control register (PC16550D, 8.1)."""

    BITS_8 = 0b11
    """Eight bits a character."""
    TWO_STOP = 1 << 2
    """Two stop bits."""
    PARITY = 1 << 3
    """A parity bit."""
    DIVISOR = 1 << 7
    """Registers 0 and 1 are the divisor."""


class ModemControl(enum.IntFlag):
    """Bits of the modem control register (PC16550D, 8.8)."""

    DTR = 1 << 0
    """Data terminal ready."""
    RTS = 1 << 1
    """Request to send."""
    OUT2 = 1 << 3
    """Lets interrupts out, on PCs."""


class LineStatus(enum.IntFlag):
    """Bits of the line status register (PC16550D, 8.4)."""

    DATA = 1 << 0
    """There is data to be read."""
    OVERRUN = 1 << 1
    """Data was lost: the FIFO was full."""
    TRANSMITTER = 1 << 5
    """The transmitter can be written to."""
    IDLE = 1 << 6
    """All was sent."""


@dataclass(frozen=True, slots=True)
class SerialState:
    """The registers of a port that keep their value; mtty forgets the divisor when it is looked at."""

    interrupts: InterruptEnable
    """Interrupts that it sends."""
    line: LineControl
    """Line control."""
    modem: ModemControl
    """Modem control."""
    scratch: int
    """Scratch register, 8 bits: means nothing."""


class SerialPort:
    """One port of an mtty device.

    Lifetime:
        Lives as long as its driver is started.
    Locking:
        All methods may be called from any thread; what several threads read at once is shared out among them.
    """

    def __init__(self, driver: Mtty, number: int, region: Region) -> None:
        self.number = number
        """Which of the device's ports it is, from 0."""
        self.region = region
        """Its eight registers."""
        self._driver = driver
        self._received = bytearray()

    @property
    def name(self) -> str:
        """Device and port, for messages."""
        return f"{self._driver.mdev.name} port {self.number}"

    def configure(self, baud: int = _BASE_BAUD, line: LineControl = LineControl.BITS_8) -> None:
        """Set speed and line control, and clear the FIFO; data that was not read yet is forgotten.

        Args:
            baud: 115200 divided by a whole number of 16 bits.
            line: line control, without `LineControl.DIVISOR`.

        Raises:
            ArgumentError: there is no divisor for that speed.
        """
        divisor, rest = divmod(_BASE_BAUD, baud) if baud > 0 else (0, 1)
        if rest or not 0 < divisor < 1 << 16:
            raise ArgumentError(f"no divisor of {_BASE_BAUD} gives {baud} baud")
        if line & LineControl.DIVISOR:
            raise ArgumentError("line control has the bit that selects the divisor; leave it out")
        region = self.region
        with self._driver._lock:
            region.write8(LCR, LineControl.DIVISOR)
            region.write8(DLL, divisor & 0xFF)
            region.write8(DLM, divisor >> 8)
            region.write8(LCR, line)
            region.write8(FCR, FifoControl.ENABLE | FifoControl.CLEAR_RECEIVER | FifoControl.CLEAR_TRANSMITTER)
            self._received.clear()

    @property
    def state(self) -> SerialState:
        """Its registers now."""
        region = self.region
        with self._driver._lock:
            return SerialState(
                InterruptEnable(region.read8(IER)),
                LineControl(region.read8(LCR)),
                ModemControl(region.read8(MCR)),
                region.read8(SCR),
            )

    def set_modem(self, lines: ModemControl) -> None:
        """Set the modem control lines."""
        self.region.write8(MCR, lines)

    def set_scratch(self, value: int) -> None:
        """Set the scratch register, 8 bits."""
        self.region.write8(SCR, value)

    def write(self, data: bytes | bytearray | memoryview, timeout: float = 5.0) -> None:
        """Send bytes; waits while the transmitter is full, and takes in what comes back meanwhile.

        What fits the FIFO stays in it until it is read.

        Raises:
            DeadlineError: not all was sent within ``timeout`` seconds; the message says how much was.
        """
        data = bytes(data)
        deadline = deadline_of(timeout)
        for sent in range(0, len(data), _CHUNK):
            while not self.region.read8(LSR) & LineStatus.TRANSMITTER:
                if time.monotonic() >= deadline:
                    raise DeadlineError(f"{self.name}: {sent} of {len(data)} bytes were sent within {timeout:g} s")
                if not self._driver._service():
                    time.sleep(_NAP)
            for byte in data[sent : sent + _CHUNK]:
                self.region.write8(TX, byte)

    def read(self, size: int, timeout: float = 5.0) -> bytes:
        """Wait for so many bytes, and give them.

        Raises:
            BoundsError: ``size`` is negative.
            DeadlineError: fewer came within ``timeout`` seconds; they are kept for the next call.
            VfioError: data was lost, because the FIFO was full.
        """
        if size < 0:
            raise BoundsError(f"{size} bytes can't be read")
        if not self._driver._waiter.wait(lambda: len(self._received) >= size, deadline_of(timeout)):
            raise DeadlineError(f"{self.name}: {len(self._received)} of {size} bytes came within {timeout:g} s")
        return self._take(size)

    def read_available(self) -> bytes:
        """Give the bytes that are there; never waits."""
        self._driver._service()
        return self._take(len(self._received))

    def _take(self, size: int) -> bytes:
        with self._driver._lock:
            taken = bytes(self._received[:size])
            del self._received[:size]
        return taken

    def _drain(self) -> int:
        """Take in what the FIFO holds; the driver's lock is held."""
        count = 0
        while (status := self.region.read8(LSR)) & LineStatus.DATA:
            self._received.append(self.region.read8(RX))
            count += 1
        if status & LineStatus.OVERRUN:
            raise VfioError(f"{self.name} has lost data: its FIFO was full")
        return count

    def __repr__(self) -> str:
        return f"<SerialPort {self.name}>"


class Mtty(DriverBase):
    """Drive an mtty device: serial ports that loop back.

    ::

        with vfio_user.open_mdev(uuid) as device, Mtty(device) as mtty:
            mtty.ports[0].write(b"hello")
            mtty.ports[0].read(5)

    Lifetime:
        See `DriverBase`. Probing turns INTx on and leaves all that the ports hold as it is.
    Locking:
        All methods may be called from any thread.
    """

    match = (PciId(0x4348, 0x3253),)
    """What it looks like."""

    ports: tuple[SerialPort, ...]
    """Its ports: one or two."""
    vector: IrqVector
    """Its interrupt."""

    def __init__(self, mdev: MdevDevice) -> None:
        """Take a device, which is not touched yet.

        Raises:
            UnsupportedError: it is no mtty device.
        """
        config = mdev.pci.config
        if not any(each.matches(config.vendor_id, config.device_id, config.class_code) for each in self.match):
            raise UnsupportedError(
                f"Mtty does not drive {mdev.name} ({config.vendor_id:04x}:{config.device_id:04x}), a {mdev.node.type}"
            )
        super().__init__(mdev)
        self.mdev = mdev
        """The device that it drives."""
        self._lock = threading.Lock()

    def probe(self) -> None:
        """Turn the interrupt on."""
        bars = [each for each in self.mdev.pci.bars if each is not None]
        self.ports = tuple(SerialPort(self, number, region) for number, region in enumerate(bars))
        (self.vector,) = self.mdev.pci.irqs.intx.enable(1)
        self._waiter = Waiter(self._lock, self.vector, poll=self._service, diagnose=lambda: None)
        try:
            self._set_interrupts(InterruptEnable.DATA)
        except BaseException:
            self.mdev.pci.irqs.intx.disable()
            raise

    def remove(self) -> None:
        """Turn the interrupt off."""
        try:
            self._set_interrupts(InterruptEnable(0))
        finally:
            self.mdev.pci.irqs.intx.disable()

    def reset_done(self) -> None:
        """Turn the interrupt on again, in the ports too."""
        self._set_interrupts(InterruptEnable.DATA)
        self.mdev.pci.irqs.intx.unmask()

    def _set_interrupts(self, wanted: InterruptEnable) -> None:
        for port in self.ports:
            port.region.write8(IER, wanted)

    def _service(self) -> int:
        """Take in what all ports have received; give how many bytes."""
        if not self._started:
            raise ClosedError(f"{self!r}; start() it, or use it inside of its block")
        with self._lock:
            # Unmasked first: what comes in after the last look then interrupts again.
            self.mdev.pci.irqs.intx.unmask()
            count = sum(port._drain() for port in self.ports)
            if count:
                self._waiter.notify()
            return count
