"""An 82576 as a copy engine: frames that are given back by its own loopback carry memory from here to there."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from vfio_user.drivers.ethernet import MIN_FRAME
from vfio_user.drivers.igb.adapter import IgbAdapter
from vfio_user.drivers.igb.errors import IgbDeadlineError, IgbError
from vfio_user.drivers.igb.regs import ReceiveControl, RxQueue, TxQueue
from vfio_user.drivers.igb.rings import DESCRIPTOR_SIZE, RxRing, TxRing
from vfio_user.drivers.waiting import LOOK_EVERY, deadline_of
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, DeadlineError, UnsupportedError
from vfio_user.kernel.mman import round_up

if TYPE_CHECKING:
    from vfio_user.device.irq import IrqVectors
    from vfio_user.device.vector import IrqVector
    from vfio_user.iommu.buffer import DmaSlice

__all__ = ["IgbCopyEngine", "cut"]

_CHUNK = 4096
_CHECKSUM = 4
_ENTRIES = 256
_RING = round_up(_ENTRIES * DESCRIPTOR_SIZE, 4096)
_TYPE_OFFSET = 12
_LINK_TIMEOUT = 5.0

#: EtherTypes that a controller, or its emulation, acts upon, so that such a frame may not come back: IPv4, IPv6, VLAN
#: tags, pause frames.
_SPECIAL = frozenset({0x0800, 0x86DD, 0x8100, 0x88A8, 0x9100, 0x8808})


def cut(data: memoryview) -> list[tuple[int, int]]:
    """Cut memory into pieces that pass as frames: begin and end of each.

    Every piece has 60 to 4096 bytes, begins at an even place, and has nothing special where a frame has its type. A
    piece may begin before the last one ends; what it carries there is the same.

    Raises:
        BoundsError: there are less than 60 bytes.
        UnsupportedError: no cut helps: the content is full of special types.
    """
    size = len(data)
    if size < MIN_FRAME:
        raise BoundsError(f"{size} bytes can't be copied by frames, which have {MIN_FRAME} at least")
    pieces = []
    begin = 0
    while True:
        end = min(begin + _CHUNK, size)
        pieces.append((begin, end))
        if _special(data, begin):
            raise UnsupportedError(
                f"the bytes at {begin + _TYPE_OFFSET} look like the type of a frame that the controller would act upon "
                f"({data[begin + _TYPE_OFFSET : begin + _TYPE_OFFSET + 2].hex()}); copy this by other means"
            )
        if end == size:
            return pieces
        following = min(end, size - MIN_FRAME) & ~1
        while _special(data, following) and following > begin + 2:
            following -= 2
        begin = following


def _special(data: memoryview, begin: int) -> bool:
    return int.from_bytes(data[begin + _TYPE_OFFSET : begin + _TYPE_OFFSET + 2], "big") in _SPECIAL


class IgbCopyEngine(IgbAdapter):
    """Copy memory by an Intel 82576: something that does DMA reads, DMA writes and MSI-X on demand.

    ::

        with vfio_user.open("0000:01:00.0") as pci, IgbCopyEngine(pci) as engine:
            engine.copy(target, source)

    Lifetime:
        See `Driver`. Probing resets the function, turns bus mastering, one MSI-X vector and the loopback on.
    Locking:
        Copies take turns: a lock serialises them, and resets.
    """

    vector: IrqVector
    """Its interrupt: sent when frames of a copy have arrived, and by `raise_interrupt`."""

    def copy(self, destination: DmaSlice, source: DmaSlice, *, timeout: float | None = None) -> None:
        """Copy all of ``source`` to the beginning of ``destination``, by the device; waits until it is there.

        The memory may be that of any mapping. The two must not overlap. The device does not tell of memory that it
        can't reach: it may carry zeros instead, and the IOMMU reports the fault to the kernel.

        Args:
            destination: at least as many bytes; its IOVA is even, because the lowest bit has another meaning to the
                device (7.1.5.1).
            source: 60 bytes at least. It is looked at here to cut it into frames.
            timeout: seconds for all of it; by default the engine's.

        Raises:
            BoundsError: too few bytes, or too little room for them.
            ArgumentError: source and destination overlap.
            AlignmentError: the destination's IOVA is odd.
            UnsupportedError: the content can't be cut into frames.
            IgbDeadlineError: it was not done in time. The controller was reset, and touches the memory no longer.
            IgbNotRunningError: the engine is stopped, or being reset.
        """
        size = len(source)
        if len(destination) < size:
            raise BoundsError(f"{size} bytes do not fit a destination of {len(destination)}")
        if source.iova < destination.iova + size and destination.iova < source.iova + size:
            raise ArgumentError("source and destination overlap")
        if destination.iova % 2:
            raise AlignmentError(f"the destination's IOVA {destination.iova:#x} is odd")
        deadline = deadline_of(self.timeout if timeout is None else timeout)
        pieces = cut(source.view)
        with self._life:
            self._require_running()
            most = (_ENTRIES - 1) // self._tx.most_for_one
            for first in range(0, len(pieces), most):
                self._carry(destination, source, pieces[first : first + most], deadline)

    def raise_interrupt(self) -> None:
        """Have the device send its interrupt, without any other reason (EICS)."""
        with self._life:
            self._require_running()
            self.registers.raise_interrupts(1)

    # -- for IgbAdapter

    def _num_vectors(self) -> int:
        return 1

    def _allocate(self, stack: contextlib.ExitStack, vectors: IrqVectors | None) -> None:
        assert vectors is not None
        (self.vector,) = vectors
        memory = stack.enter_context(self.pci.dma_alloc(2 * _RING))
        self._rx = RxRing(memory[:_RING], None, _ENTRIES, _CHUNK)
        self._tx = TxRing(memory[_RING:], None, _ENTRIES, _CHUNK)

    def _configure(self) -> None:
        self._rx.reset()
        self._tx.reset()
        registers = self.registers
        registers.set_receive_queue(0, self._rx, _CHUNK)
        registers.set_transmit_queue(0, self._tx)
        promiscuous = ReceiveControl.UNICAST_PROMISCUOUS | ReceiveControl.MULTICAST_PROMISCUOUS
        accept = promiscuous | ReceiveControl.BROADCAST | ReceiveControl.LONG_PACKETS | ReceiveControl.MAC_LOOPBACK
        registers.start(1, accept, _CHUNK + _CHECKSUM)
        registers.route_interrupts([0], [0], 0)
        registers.start_loopback()
        deadline = time.monotonic() + _LINK_TIMEOUT
        while not registers.link_up():
            if time.monotonic() >= deadline:
                raise IgbDeadlineError(f"{self.name}: its loopback has no link after {_LINK_TIMEOUT:g} s")
            time.sleep(0.01)

    def _forget(self) -> None:
        self._tx.reset()

    # -- inside

    def _carry(self, destination: DmaSlice, source: DmaSlice, pieces: list[tuple[int, int]], deadline: float) -> None:
        write = self.registers.bar.write32
        for begin, _ in pieces:
            self._rx.offer(destination.iova + begin)
        write(RxQueue(0).tail, self._rx.tail)
        put = self._tx.put([source[begin:end] for begin, end in pieces])
        assert put == len(pieces)  # both rings are empty between copies
        write(TxQueue(0).tail, self._tx.tail)
        arrived: list[int] = []
        try:
            while True:
                arrived += self._rx.take_lengths(len(pieces) - len(arrived))
                self._tx.reclaim()
                if len(arrived) == len(pieces) and not self._tx.in_flight:
                    break
                left = deadline - time.monotonic()
                if left <= 0:
                    raise IgbDeadlineError(
                        f"{self.name}: {len(arrived)} of {len(pieces)} pieces of a copy arrived in time"
                    )
                with contextlib.suppress(DeadlineError):
                    self.vector.wait(min(left, LOOK_EVERY))
        except BaseException:
            self.reset()  # what is still under way must not arrive later
            raise
        if arrived != [end - begin for begin, end in pieces]:
            raise IgbError(f"{self.name}: pieces of a copy arrived damaged, or in another order: {arrived}")
