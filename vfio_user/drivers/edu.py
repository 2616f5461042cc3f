"""The edu device of QEMU: made for teaching, and the smallest device with registers, interrupts and DMA.

Source: ``docs/specs/edu.rst`` of QEMU.
"""

from __future__ import annotations

import enum
import time
from contextlib import suppress

from vfio_user.addresses import PciId
from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Access, Field, RegisterValue
from vfio_user.device.vector import IrqVector
from vfio_user.drivers.base import Driver
from vfio_user.errors import ArgumentError, BoundsError, DeviceGoneError, UnsupportedError, ZappedError
from vfio_user.iommu import DmaBuffer, DmaSlice

__all__ = [
    "DmaCommand",
    "Edu",
    "EduRegisters",
    "FactorialStatus",
    "Identification",
    "Interrupt",
    "InterruptStatus",
]

_DMA_BUFFER = 0x40000
"""Where its own memory begins, as its DMA engine counts."""
_ALL_ONES = 0xFFFFFFFF
_LEFT_BEHIND_TIMEOUT = 1.0
"""Seconds that a transfer has which nobody waits for; it takes a tenth of one."""


class Interrupt(enum.IntFlag):
    """Reasons in the interrupt status register."""

    FACTORIAL = 0x001
    """A factorial is ready."""
    DMA = 0x100
    """A transfer is done."""


class Identification(RegisterValue):
    """Who it is."""

    magic = Field(0, 7, doc="0xED for every edu device.")
    minor = Field(16, 23, doc="Minor version.")
    major = Field(24, 31, doc="Major version.")


class FactorialStatus(RegisterValue):
    """What the factorial unit does."""

    computing = Field(0, doc="It computes.")
    interrupt = Field(7, doc="Interrupt when it is done.")


class InterruptStatus(RegisterValue):
    """Why there was an interrupt."""

    factorial = Field(0, doc="A factorial is ready.")
    dma = Field(8, doc="A transfer is done.")


class DmaCommand(RegisterValue):
    """What the DMA engine does."""

    start = Field(0, doc="Start; 1 while it transfers.")
    to_memory = Field(1, doc="From the device to memory; else the other way round.")
    interrupt = Field(2, doc="Interrupt when it is done.")


class EduRegisters(RegisterMap):
    """Registers of QEMU's edu device, in BAR 0; those below 0x80 take 32 bits only."""

    source = "docs/specs/edu.rst of QEMU"

    identification = Register(0x00, 32, Access.RO, Identification, doc="Who it is.")
    liveness = Register(0x04, 32, doc="Reads as the complement of what was written.")
    factorial = Register(0x08, 32, doc="A number in, its factorial out.")
    status = Register(0x20, 32, kind=FactorialStatus, doc="What the factorial unit does.")
    irq_status = Register(0x24, 32, Access.RO, InterruptStatus, doc="Why there was an interrupt.")
    irq_raise = Register(0x60, 32, Access.WO, InterruptStatus, doc="Adds these reasons, and interrupts.")
    irq_ack = Register(0x64, 32, Access.WO, InterruptStatus, doc="Takes these reasons away.")
    dma_source = Register(0x80, 64, doc="Where a transfer reads.")
    dma_destination = Register(0x88, 64, doc="Where a transfer writes.")
    dma_count = Register(0x90, 64, doc="How many bytes it has.")
    dma_command = Register(0x98, 64, kind=DmaCommand, doc="Starts a transfer.")


ID, LIVENESS = EduRegisters.identification.offset, EduRegisters.liveness.offset
FACTORIAL, STATUS = EduRegisters.factorial.offset, EduRegisters.status.offset
IRQ_STATUS = EduRegisters.irq_status.offset
IRQ_RAISE, IRQ_ACK = EduRegisters.irq_raise.offset, EduRegisters.irq_ack.offset
DMA_COMMAND = EduRegisters.dma_command.offset


class Edu(Driver):
    """Drive QEMU's edu device: liveness, factorials, DMA.

    Lifetime:
        See `Driver`. Probing turns bus mastering and MSI (or INTx) on; removing turns both off.
    Locking:
        One call at a time: the device has one factorial unit and one DMA engine.
    """

    match = (PciId(0x1234, 0x11E8),)
    register_maps = (EduRegisters,)

    BUFFER_SIZE = 4095
    """Bytes of its own memory that transfers may use. The next one is there too, but older QEMU aborts at it."""
    IOVA_LIMIT = 1 << 28
    """It has 28 address bits, unless QEMU was told otherwise (``dma_mask``)."""

    regs: EduRegisters
    """Its registers."""
    vector: IrqVector
    """Its interrupt."""

    def probe(self) -> None:
        """Check the identification, then turn on bus mastering and the interrupt.

        A transfer that a process left behind when it died ends before that, while it reaches no memory.

        Raises:
            UnsupportedError: it is no edu device.
            DeviceGoneError: it reads all-ones.
            DeadlineError: such a transfer does not end; reset the device.
        """
        self.regs = EduRegisters(self.pci.bar(0))
        identity = self.identification
        if Identification(identity).magic != 0xED:
            raise UnsupportedError(f"{self.pci.name}: identification {identity:#010x} does not end in ed")
        self._wait_idle(_LEFT_BEHIND_TIMEOUT)
        self._irqs = self.pci.irqs.msi if self.pci.irqs.msi.count else self.pci.irqs.intx
        self.pci.set_master(True)
        try:
            (self.vector,) = self._irqs.enable(1)
        except BaseException:
            self.pci.set_master(False)
            raise

    def remove(self) -> None:
        """Turn the interrupt and bus mastering off."""
        try:
            self.pci.set_master(False)
        finally:
            self._irqs.disable()

    def reset_prepare(self) -> None:
        """Let a transfer end, which takes a tenth of a second: it must not run into the reset."""
        with suppress(ZappedError):  # a device that is off already transfers nothing
            self._wait_idle(_LEFT_BEHIND_TIMEOUT)

    def reset_done(self) -> None:
        """Turn bus mastering on again and forget interrupts of the time before."""
        self.pci.set_master(True)
        self.regs.irq_ack.write(self.regs.irq_status.read())
        self.vector.drain()

    # -- what it does

    @property
    def identification(self) -> int:
        """Identification register: ``0xMMmm00ed``, major and minor version.

        Raises:
            DeviceGoneError: it reads all-ones.
        """
        value = self.regs.identification.read()
        if value == _ALL_ONES:
            raise DeviceGoneError(f"{self.pci.name} reads all-ones: it has fallen off the bus, or decoding is off")
        return value

    def is_alive(self, probe: int = 0x5A5A1234) -> bool:
        """Write a 32-bit value to the liveness register, and tell whether its complement comes back."""
        self.regs.liveness.write(probe & _ALL_ONES)
        return self.regs.liveness.read() == ~probe & _ALL_ONES

    def factorial(self, number: int, *, timeout: float = 5.0) -> int:
        """Compute ``number!`` modulo 2^32 on the device, and wait for its interrupt.

        Args:
            number: 0 to 2^32-1.
            timeout: seconds.

        Raises:
            DeadlineError: no interrupt came.
            BoundsError: the number does not fit 32 bits.
        """
        if not 0 <= number <= _ALL_ONES:
            raise BoundsError(f"{number} does not fit 32 bits")
        self.regs.status.wait(timeout, computing=0)
        self.regs.status.write(FactorialStatus.compose(interrupt=1))
        self._forget(Interrupt.FACTORIAL)
        self.regs.factorial.write(number)
        self._wait(Interrupt.FACTORIAL, timeout)
        # The unit says that it is done before it interrupts: this one may be that of a number of before.
        self.regs.status.wait(timeout, computing=0)
        return self.regs.factorial.read()

    def copy_to_device(self, memory: DmaBuffer | DmaSlice, offset: int = 0, *, timeout: float = 5.0) -> None:
        """Copy DMA memory into the device's buffer at ``offset``; waits for the interrupt."""
        self._dma(memory, offset, memory.iova, _DMA_BUFFER + offset, to_memory=False, timeout=timeout)

    def copy_from_device(self, memory: DmaBuffer | DmaSlice, offset: int = 0, *, timeout: float = 5.0) -> None:
        """Fill DMA memory from the device's buffer at ``offset``; waits for the interrupt."""
        self._dma(memory, offset, _DMA_BUFFER + offset, memory.iova, to_memory=True, timeout=timeout)

    def alloc(self, size: int = 4096) -> DmaBuffer:
        """Allocate memory that it can reach with its 28 address bits."""
        return self.pci.dma_alloc(size, iova_limit=self.IOVA_LIMIT)

    # -- inside

    def _dma(
        self,
        memory: DmaBuffer | DmaSlice,
        offset: int,
        source: int,
        destination: int,
        *,
        to_memory: bool,
        timeout: float,
    ) -> None:
        size = len(memory)
        if not 0 <= offset <= self.BUFFER_SIZE - size:
            raise BoundsError(f"{size} bytes at {offset:#x} do not fit its buffer of {self.BUFFER_SIZE} bytes")
        if size == 0:
            raise ArgumentError("nothing to copy: the memory has 0 bytes")
        if memory.iova + size > self.IOVA_LIMIT:
            raise BoundsError(f"IOVA {memory.iova:#x} is beyond its 28 address bits; allocate with Edu.alloc()")
        self._wait_idle(timeout)
        regs = self.regs
        regs.dma_source.write(source)
        regs.dma_destination.write(destination)
        regs.dma_count.write(size)
        self._forget(Interrupt.DMA)
        regs.dma_command.write(DmaCommand.compose(start=1, interrupt=1, to_memory=to_memory))
        self._wait(Interrupt.DMA, timeout)

    def _wait_idle(self, timeout: float) -> None:
        self.regs.dma_command.wait(timeout, start=0)

    def _forget(self, reason: Interrupt) -> None:
        """Take a reason away that is of before: who did not wait for it to come, or died, has left it."""
        if self.regs.irq_status.read() & reason:
            self.regs.irq_ack.write(reason)

    def _wait(self, reason: Interrupt, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        status = 0
        # An interrupt for another reason is one that came too late for the call that waited for it.
        while not status & reason:
            self.vector.wait(max(0.0, deadline - time.monotonic()))
            status = self.regs.irq_status.read()
            self.regs.irq_ack.write(status)
            if self._irqs is self.pci.irqs.intx:
                self._irqs.unmask()
