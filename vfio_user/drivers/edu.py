"""The edu device of QEMU: made for teaching, and the smallest device with registers, interrupts and DMA.

Source: ``docs/specs/edu.rst`` of QEMU.
"""

from __future__ import annotations

import enum
import time
from contextlib import suppress

from vfio_user.addresses import PciId
from vfio_user.device.region import Region
from vfio_user.device.vector import IrqVector
from vfio_user.drivers.base import Driver
from vfio_user.errors import ArgumentError, BoundsError, DeviceGoneError, UnsupportedError, ZappedError
from vfio_user.iommu import DmaBuffer, DmaSlice

__all__ = ["Edu", "Interrupt"]

ID, LIVENESS, FACTORIAL, STATUS = 0x00, 0x04, 0x08, 0x20
IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x24, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98

_DMA_BUFFER = 0x40000
"""Where its own memory begins, as its DMA engine counts."""
_ALL_ONES = 0xFFFFFFFF


class _Status(enum.IntFlag):
    COMPUTING = 0x01
    INTERRUPT = 0x80


class _DmaCommand(enum.IntFlag):
    START = 0x1
    TO_MEMORY = 0x2
    INTERRUPT = 0x4


class Interrupt(enum.IntFlag):
    """Reasons in the interrupt status register."""

    FACTORIAL = 0x001
    """A factorial is ready."""
    DMA = 0x100
    """A transfer is done."""


class Edu(Driver):
    """Drive QEMU's edu device: liveness, factorials, DMA.

    Lifetime:
        See `Driver`. Probing turns bus mastering and MSI (or INTx) on; removing turns both off.
    Locking:
        One call at a time: the device has one factorial unit and one DMA engine.
    """

    match = (PciId(0x1234, 0x11E8),)

    BUFFER_SIZE = 4095
    """Bytes of its own memory that transfers may use. The next one is there too, but older QEMU aborts at it."""
    IOVA_LIMIT = 1 << 28
    """It has 28 address bits, unless QEMU was told otherwise (``dma_mask``)."""

    bar: Region
    """Its registers."""
    vector: IrqVector
    """Its interrupt."""

    def probe(self) -> None:
        """Check the identification, then turn on bus mastering and the interrupt.

        Raises:
            UnsupportedError: it is no edu device.
            DeviceGoneError: it reads all-ones.
        """
        self.bar = self.pci.bar(0)
        identity = self.identification
        if identity & 0xFF != 0xED:
            raise UnsupportedError(f"{self.pci.name}: identification {identity:#010x} does not end in ed")
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
            self._wait_idle(1.0)

    def reset_done(self) -> None:
        """Turn bus mastering on again and forget interrupts of the time before."""
        self.pci.set_master(True)
        self.bar.write32(IRQ_ACK, self.bar.read32(IRQ_STATUS))
        self.vector.drain()

    # -- what it does

    @property
    def identification(self) -> int:
        """Identification register: ``0xMMmm00ed``, major and minor version.

        Raises:
            DeviceGoneError: it reads all-ones.
        """
        value = self.bar.read32(ID)
        if value == _ALL_ONES:
            raise DeviceGoneError(f"{self.pci.name} reads all-ones: it has fallen off the bus, or decoding is off")
        return value

    def is_alive(self, probe: int = 0x5A5A1234) -> bool:
        """Write a 32-bit value to the liveness register, and tell whether its complement comes back."""
        self.bar.write32(LIVENESS, probe & _ALL_ONES)
        return self.bar.read32(LIVENESS) == ~probe & _ALL_ONES

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
        self.bar.poll_until(STATUS, mask=_Status.COMPUTING, equals=0, timeout=timeout)
        self.bar.write32(STATUS, _Status.INTERRUPT)
        self.bar.write32(FACTORIAL, number)
        self._wait(Interrupt.FACTORIAL, timeout)
        return self.bar.read32(FACTORIAL)

    def copy_to_device(self, memory: DmaBuffer | DmaSlice, offset: int = 0, *, timeout: float = 5.0) -> None:
        """Copy DMA memory into the device's buffer at ``offset``; waits for the interrupt."""
        self._dma(memory, offset, memory.iova, _DMA_BUFFER + offset, _DmaCommand(0), timeout)

    def copy_from_device(self, memory: DmaBuffer | DmaSlice, offset: int = 0, *, timeout: float = 5.0) -> None:
        """Fill DMA memory from the device's buffer at ``offset``; waits for the interrupt."""
        self._dma(memory, offset, _DMA_BUFFER + offset, memory.iova, _DmaCommand.TO_MEMORY, timeout)

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
        direction: _DmaCommand,
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
        self.bar.write64(DMA_SOURCE, source)
        self.bar.write64(DMA_DESTINATION, destination)
        self.bar.write64(DMA_COUNT, size)
        self.bar.write64(DMA_COMMAND, _DmaCommand.START | _DmaCommand.INTERRUPT | direction)
        self._wait(Interrupt.DMA, timeout)

    def _wait_idle(self, timeout: float) -> None:
        self.bar.poll_until(DMA_COMMAND, mask=_DmaCommand.START, equals=0, timeout=timeout)

    def _wait(self, reason: Interrupt, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        status = 0
        # An interrupt for another reason is one that came too late for the call that waited for it.
        while not status & reason:
            self.vector.wait(max(0.0, deadline - time.monotonic()))
            status = self.bar.read32(IRQ_STATUS)
            self.bar.write32(IRQ_ACK, status)
            if self._irqs is self.pci.irqs.intx:
                self._irqs.unmask()
