"""The rings of the 82576 as they lie in memory: advanced descriptors of 16 bytes (datasheet, 7.1.5 and 7.2.2).

A ring knows its memory and its position; it knows nothing of registers, threads or who waits.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from vfio_user.drivers.ethernet import Frame
from vfio_user.errors import BoundsError
from vfio_user.iommu.buffer import DmaSlice
from vfio_user.kernel.mman import PAGE_SIZE
from vfio_user.memory import fence

__all__ = ["DESCRIPTOR_SIZE", "RxRing", "TxRing", "check_entries"]

DESCRIPTOR_SIZE = 16
"""Bytes of a descriptor, of either kind."""

_RX_READ = struct.Struct("<QQ")  # buffer, header buffer (7.1.5.1)
_RX_WRITTEN = struct.Struct("<IH")  # status and errors, length: the second half (7.1.5.2)
_TX = struct.Struct("<QII")  # buffer, command with length, payload length (7.2.2.3)
_WORD = struct.Struct("<I")
_HALF = 8

_DONE = 1 << 0  # of either status
_END_OF_PACKET = 1 << 1
_RX_ERROR = 1 << 31

_DATA = 3 << 20
_EOP, _FCS, _REPORT, _ADVANCED = 1 << 24, 1 << 25, 1 << 27, 1 << 29
_PLAIN = _DATA | _FCS | _ADVANCED
_PAYLOAD_SHIFT = 14


def check_entries(what: str, entries: int) -> None:
    """Refuse a number of descriptors that no ring can have: a multiple of 8 (128 bytes), 8 to 32768.

    Raises:
        BoundsError: it is something else.
    """
    if not 8 <= entries <= 32768 or entries % 8:
        raise BoundsError(f"{what} is {entries}: give a multiple of 8 from 8 to 32768")


class TxRing:
    """Frames on their way out.

    A frame takes a descriptor for each page that it touches. Hardware needs only one, but QEMU (seen with 10.0) drops a
    frame if a piece of it crosses from one page to another that does not follow it in the machine's memory.

    Lifetime:
        Borrows its memory; whoever allocated that frees it once the controller no longer uses the ring.
    Locking:
        The caller serialises all calls; `num_free` and `in_flight` may be read by anybody.
    """

    def __init__(self, ring: DmaSlice, buffers: DmaSlice | None, entries: int, longest: int) -> None:
        """Lay a ring of ``entries`` descriptors over memory.

        Args:
            ring: 16 bytes for each, aligned to 128.
            buffers: ``longest`` bytes for each, to which bytes are copied; without, only DMA memory can be sent.
            entries: descriptors; one of them always stays empty.
            longest: bytes of the longest frame.
        """
        self.iova = ring.iova
        """Where the controller finds it."""
        self.entries = entries
        """Descriptors."""
        self.most_for_one = (longest + PAGE_SIZE - 2) // PAGE_SIZE + 1
        """Descriptors that one frame can take."""
        self._ring = ring.view[: entries * DESCRIPTOR_SIZE]
        self._buffers = buffers
        self._buffer_size = longest
        self.in_flight = 0
        """Frames that the controller has not reported as sent."""
        self.reset()

    def reset(self) -> int:
        """Start over with an empty ring; tell how many frames were in flight."""
        lost, self.in_flight = self.in_flight, 0
        self._ring[:] = bytes(len(self._ring))
        self.tail = 0
        """Where the next frame goes: the value for the tail register."""
        self.num_free = self.entries - 1
        """Descriptors that are free."""
        # Of each batch: descriptor that reports, descriptors, frames, and memory to hold until then.
        self._batches: deque[tuple[int, int, int, list[DmaSlice]]] = deque()
        return lost

    def put(self, frames: Sequence[Frame]) -> int:
        """Write as many of the frames as there is room for, and give their number; the tail register comes after.

        Only the last of them reports when it is sent, which is enough: the controller keeps their order.
        """
        count, used, last, held = 0, 0, 0, []
        for frame in frames:
            size = len(frame)
            iova = frame.iova if isinstance(frame, DmaSlice) else self._place()
            # Of nearly all frames there is one piece.
            pieces = [(iova, size)] if iova % PAGE_SIZE + size <= PAGE_SIZE else _by_pages(iova, size)
            if used + len(pieces) > self.num_free:
                break
            if isinstance(frame, DmaSlice):
                held.append(frame)
            else:
                self._copy(frame, size)
            for at, length in pieces:
                last = self.tail
                command = _PLAIN | length if at + length < iova + size else _PLAIN | _EOP | length
                _TX.pack_into(self._ring, last * DESCRIPTOR_SIZE, at, command, size << _PAYLOAD_SHIFT)
                self.tail = last + 1 if last + 1 < self.entries else 0
            used += len(pieces)
            count += 1
        if count:
            place = last * DESCRIPTOR_SIZE + _HALF
            _WORD.pack_into(self._ring, place, _WORD.unpack_from(self._ring, place)[0] | _REPORT)
            self._batches.append((last, used, count, held))
            self.num_free -= used
            self.in_flight += count
        return count

    def reclaim(self) -> int:
        """Take back what the controller reports as sent; give the number of frames."""
        sent = 0
        while self._batches:
            last, used, count, _ = self._batches[0]
            if not _WORD.unpack_from(self._ring, last * DESCRIPTOR_SIZE + _HALF + 4)[0] & _DONE:
                break
            self._batches.popleft()
            self.num_free += used
            sent += count
        self.in_flight -= sent
        return sent

    def _place(self) -> int:
        assert self._buffers is not None  # a ring without buffers is given DMA memory only
        return self._buffers.iova + self.tail * self._buffer_size

    def _copy(self, frame: bytes | bytearray | memoryview, size: int) -> None:
        assert self._buffers is not None
        begin = self.tail * self._buffer_size
        self._buffers.view[begin : begin + size] = frame


def _by_pages(iova: int, size: int) -> list[tuple[int, int]]:
    """Cut memory where pages end."""
    pieces = []
    while size:
        length = min(size, PAGE_SIZE - iova % PAGE_SIZE)
        pieces.append((iova, length))
        iova, size = iova + length, size - length
    return pieces


class RxRing:
    """Frames on their way in.

    Lifetime:
        As `TxRing`.
    Locking:
        The caller serialises all calls; `ready` may be called by anybody.
    """

    def __init__(self, ring: DmaSlice, buffers: DmaSlice | None, entries: int, buffer_size: int) -> None:
        """Lay a ring of ``entries`` descriptors over memory; ``buffers`` has ``buffer_size`` bytes for each."""
        self.iova = ring.iova
        """Where the controller finds it."""
        self.entries = entries
        """Descriptors; one of them is always the driver's."""
        self.num_bad = 0
        """Frames that were dropped because they came damaged, or in pieces."""
        self._ring = ring.view[: entries * DESCRIPTOR_SIZE]
        self._buffers = buffers
        self._buffer_size = buffer_size
        self.reset()

    def reset(self) -> None:
        """Start over; with buffers, all but one are the controller's."""
        self._ring[:] = bytes(len(self._ring))
        self.head = 0
        """The descriptor that is filled next."""
        self.tail = 0
        """The first descriptor that the controller may not use: the value for the tail register."""
        if self._buffers is not None:
            for slot in range(self.entries):
                self._offer(slot, self._buffers.iova + slot * self._buffer_size)
            self.tail = self.entries - 1

    def ready(self) -> bool:
        """Tell whether a frame is there."""
        return bool(_WORD.unpack_from(self._ring, self.head * DESCRIPTOR_SIZE + _HALF)[0] & _DONE)

    def take(self, limit: int) -> list[bytes]:
        """Take up to ``limit`` frames in one scan, and offer their buffers again; the tail register comes after."""
        assert self._buffers is not None
        view, base, size = self._buffers.view, self._buffers.iova, self._buffer_size
        frames: list[bytes] = []
        for slot, status, length in self._written(limit):
            if status & _END_OF_PACKET and not status & _RX_ERROR and length <= size:
                frames.append(bytes(view[slot * size : slot * size + length]))
            else:
                self.num_bad += 1
            self._offer(slot, base + slot * size)
            self.tail = slot
        return frames

    # -- with the caller's own memory

    def offer(self, iova: int) -> None:
        """Give the controller one more buffer, at its tail."""
        self._offer(self.tail, iova)
        self.tail = self.tail + 1 if self.tail + 1 < self.entries else 0

    def take_lengths(self, limit: int) -> list[int]:
        """Take up to ``limit`` frames that are in the caller's memory; give their lengths, 0 for a damaged one."""
        return [0 if status & _RX_ERROR else length for _, status, length in self._written(limit)]

    # -- inside

    def _written(self, limit: int) -> list[tuple[int, int, int]]:
        """Give slot, status and length of descriptors that the controller has filled, and move on."""
        ring, slot, slots = self._ring, self.head, []
        for _ in range(min(limit, self.entries)):
            if not _WORD.unpack_from(ring, slot * DESCRIPTOR_SIZE + _HALF)[0] & _DONE:
                break
            slots.append(slot)
            slot = slot + 1 if slot + 1 < self.entries else 0
        fence()  # that they are filled before what they and the buffers hold
        found = []
        for each in slots:
            status, length = _RX_WRITTEN.unpack_from(ring, each * DESCRIPTOR_SIZE + _HALF)
            # Empty from now on, until the controller fills it again.
            _WORD.pack_into(ring, each * DESCRIPTOR_SIZE + _HALF, 0)
            found.append((each, status, length))
        self.head = slot
        return found

    def _offer(self, slot: int, iova: int) -> None:
        _RX_READ.pack_into(self._ring, slot * DESCRIPTOR_SIZE, iova, 0)
