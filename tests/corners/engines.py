"""DMA engines with an interrupt: what the tests of engines ask of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from vfio_user import DmaBuffer, DmaSlice, PciDevice
from vfio_user.drivers.edu import Edu, InterruptStatus
from vfio_user.drivers.igb import IgbCopyEngine, IgbError
from vfio_user.errors import DeadlineError

__all__ = ["EduEngine", "Engine", "IgbEngine", "running"]

PATIENCE = 60.0


class Engine(Protocol):
    """Copies memory, and interrupts when it is asked to."""

    SIZE: int
    """Bytes of a copy that takes the device several goes."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def alloc(self, size: int) -> DmaBuffer:
        """Give memory that it reaches."""

    def copy(self, target: DmaSlice, source: DmaSlice) -> None:
        """Copy all of the source."""

    def copy_in_vain(self, target: DmaSlice, source: DmaSlice) -> None:
        """Copy what is mapped nowhere, or to there: devices notice that, or do not."""

    def interrupt(self) -> int:
        """Have it interrupt, and say how often it did."""

    def quiet(self) -> bool:
        """Say whether it sends no interrupt by itself."""


class EduEngine:
    """QEMU's edu: memory goes into the device, and out of it; as much as it holds at a time."""

    CHUNK = 4032
    SIZE = 4 * CHUNK

    def __init__(self, pci: PciDevice) -> None:
        self.edu = Edu(pci)
        self.start, self.stop, self.alloc = self.edu.start, self.edu.stop, self.edu.alloc

    def copy(self, target: DmaSlice, source: DmaSlice) -> None:
        size = source.view.nbytes
        for at in range(0, size, self.CHUNK):
            end = min(at + self.CHUNK, size)
            self.edu.copy_to_device(source[at:end])
            self.edu.copy_from_device(target[at:end])

    copy_in_vain = copy  # it can't tell

    def interrupt(self) -> int:
        self.edu.regs.irq_raise.write(InterruptStatus.compose(factorial=1))
        count = self.edu.vector.wait(PATIENCE)
        self.edu.regs.irq_ack.write(self.edu.regs.irq_status.read())
        return count

    def quiet(self) -> bool:
        try:
            self.edu.vector.wait(0.05)
        except DeadlineError:
            return True
        return False


class IgbEngine:
    """QEMU's igb: frames of its own loopback carry memory from here to there, more than its rings hold at a time."""

    SIZE = 5 << 18

    def __init__(self, pci: PciDevice) -> None:
        self.igb = IgbCopyEngine(pci)
        self.start, self.stop, self.alloc = self.igb.start, self.igb.stop, pci.dma_alloc

    def copy(self, target: DmaSlice, source: DmaSlice) -> None:
        self.igb.copy(target, source, timeout=PATIENCE)

    def copy_in_vain(self, target: DmaSlice, source: DmaSlice) -> None:
        with suppress(DeadlineError, IgbError):  # what it can't read it does not send
            self.igb.copy(target, source, timeout=1)

    def interrupt(self) -> int:
        assert self.quiet()
        self.igb.raise_interrupt()
        return self.igb.vector.wait(PATIENCE)

    def quiet(self) -> bool:
        """Say whether nothing follows the interrupts of frames that have arrived."""
        for _ in range(8):
            try:
                self.igb.vector.wait(0.05)
            except DeadlineError:
                return True
        return False


@contextmanager
def running(kind: str, pci: PciDevice) -> Iterator[Engine]:
    """Start the engine of a device, and stop it at the end."""
    engine: Engine = EduEngine(pci) if kind == "edu" else IgbEngine(pci)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
