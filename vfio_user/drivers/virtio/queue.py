"""The split virtqueue, driver's side (virtio 1.2, 2.7): buffers go in, used buffers come out.

It knows its memory and one way to notify the device; of PCI, MMIO, interrupts, threads and waiting it knows nothing, so
that every transport and every driver can use it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeAlias, TypeVar

from vfio_user.drivers.virtio.errors import VirtioQueueFullError, VirtioRingError
from vfio_user.drivers.virtio.layout import DESCRIPTOR_SIZE, DescriptorFlag, QueueLayout
from vfio_user.drivers.virtio.words import little_endian
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError
from vfio_user.iommu.buffer import DmaSlice
from vfio_user.memory import fence

__all__ = ["Segment", "SplitQueue"]

T = TypeVar("T")

Segment: TypeAlias = tuple[int, int]
"""A piece of memory for the device: IOVA and bytes."""

_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE, _INDIRECT = int(DescriptorFlag.NEXT), int(DescriptorFlag.WRITE), int(DescriptorFlag.INDIRECT)
_NO_INTERRUPT = 1  # VIRTQ_AVAIL_F_NO_INTERRUPT, 2.7.7
_NO_NOTIFY = 1  # VIRTQ_USED_F_NO_NOTIFY, 2.7.10
_WRAP = 0xFFFF
_FLAGS, _INDEX, _RING = 0, 1, 2  # of either ring, in 16-bit words


class SplitQueue(Generic[T]):
    """A split virtqueue: `add` buffers, `kick` once for many, `reap` what the device has used.

    A buffer is a chain of segments that the device reads, followed by segments that it writes, and comes with a token
    of the driver's, which `reap` gives back. Each token comes out exactly once: from `reap`, or from `reset`.

    Lifetime:
        Borrows its memory; whoever allocated that frees it once the device no longer knows the queue.
    Locking:
        The caller serialises all calls.
    """

    # By the first descriptor of each chain: token, descriptors, bytes that the device may write.
    _chains: list[tuple[T, Sequence[int], int] | None]
    # Counted in 16 bits: buffers added, handed over, and taken back.
    _next: int
    _published: int
    _seen: int

    def __init__(
        self,
        size: int,
        memory: DmaSlice,
        *,
        notify: Callable[[], object],
        event_index: bool = False,
        table_entries: int = 0,
        name: str = "virtqueue",
    ) -> None:
        """Lay an empty queue over memory.

        Args:
            size: descriptors: a power of two, as the device was told.
            memory: at least ``QueueLayout(size, table_entries).num_bytes``, IOVA aligned to 16.
            notify: tells the device that there are buffers (2.7.13.4).
            event_index: VIRTIO_F_EVENT_IDX was negotiated.
            table_entries: most segments of a chain that goes through an indirect table, which costs one descriptor of
                the queue only; 0 unless VIRTIO_F_INDIRECT_DESC was negotiated.
            name: for messages.

        Raises:
            BoundsError, AlignmentError: the size, or the memory, can't be.
        """
        layout = QueueLayout(size, table_entries)
        if memory.size < layout.num_bytes:
            raise BoundsError(f"{name}: {memory.size} bytes of memory; {layout.num_bytes} are needed")
        if memory.iova % DESCRIPTOR_SIZE:
            raise AlignmentError(f"{name}: its memory is at {memory.iova:#x}, which is no multiple of 16")
        self.name = name
        """For messages."""
        self.size = size
        """Descriptors."""
        self.descriptors_iova = memory.iova + layout.descriptors
        """Where the device finds the descriptor table."""
        self.available_iova = memory.iova + layout.available
        """Where the device finds the available ring (the driver area)."""
        self.used_iova = memory.iova + layout.used
        """Where the device finds the used ring (the device area)."""
        self._notify = notify
        self._event_index = event_index
        self._table_entries = table_entries
        self._tables_iova = memory.iova + layout.tables
        view = self._memory = memory.view[: layout.num_bytes]
        self._descriptors = view[: layout.available]
        # As words, so that an index is one load or store of 16 bits.
        self._available = little_endian(view[layout.available : layout.available + 6 + 2 * size], "H")
        self._used = little_endian(view[layout.used : layout.used + 6 + 8 * size], "H")
        self._elements = little_endian(view[layout.used + 4 : layout.used + 4 + 8 * size], "I")
        self._tables = view[layout.tables :]
        self.reset()

    # -- what it holds

    @property
    def num_free(self) -> int:
        """Descriptors that are free."""
        return len(self._free)

    @property
    def num_in_flight(self) -> int:
        """Buffers that were added and have not come back."""
        return self._in_flight

    # -- buffers in

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment], token: T) -> None:
        """Add a buffer; the device sees it after the next `kick`.

        Args:
            readable: what the device reads, in order.
            writable: what the device writes, in order.
            token: comes back from `reap`.

        Raises:
            VirtioQueueFullError: too few descriptors are free; nothing was added.
            ArgumentError: a buffer without segments.
            BoundsError: more segments than the queue could ever take, or a segment that does not fit.
            VirtioRingError: the queue is broken; see `reap`.
        """
        count = len(readable) + len(writable)
        if count == 1:
            self._add_one(readable, writable, token)
            return
        self._require_sound()
        if count == 0:
            raise ArgumentError(f"{self.name}: a buffer needs at least one segment")
        most = max(self.size, self._table_entries)
        if count > most:
            raise BoundsError(f"{self.name}: {count} segments in one buffer; {most} at most")
        if count <= self._table_entries:
            self._add_indirect(readable, writable, count, token)
        else:
            self._add_chain(readable, writable, count, token)

    def kick(self) -> bool:
        """Make all buffers added so far visible to the device, and notify it if it wants that; tell whether.

        Raises:
            VfioError: the notification failed; the buffers are in flight nevertheless.
        """
        old, new = self._published, self._next
        if old == new:
            return False
        fence()  # the descriptors before the index (2.7.13.3)
        self._available[_INDEX] = new
        self._published = new
        fence()  # the index before the look at what the device wants (2.7.13.4.1)
        if self._event_index:
            event = self._used[_RING + 4 * self.size]
            wanted = (new - event - 1) & _WRAP < (new - old) & _WRAP
        else:
            wanted = not self._used[_FLAGS] & _NO_NOTIFY
        if wanted:
            self._notify()
        return wanted

    # -- buffers out

    def pending(self) -> bool:
        """Tell whether the device has used buffers that were not reaped."""
        return self._used[_INDEX] != self._seen

    def reap(self, limit: int | None = None) -> list[tuple[T, int]]:
        """Take back what the device has used: tokens, in its order, with the bytes that it wrote.

        Args:
            limit: most buffers; by default all.

        Raises:
            VirtioRingError: the ring can't be true. Buffers before the wrong entry are returned first; from then on
                the queue refuses to work until `reset`, which gives the rest back.
        """
        self._require_sound()
        ready = (self._used[_INDEX] - self._seen) & _WRAP
        if not ready:
            return []
        fence()  # the index before the elements
        visible = self._in_flight - ((self._next - self._published) & _WRAP)
        if ready > visible:
            self._break(f"the device used {ready} buffers, and {visible} were in flight")
            self._require_sound()
        if limit is not None:
            ready = min(ready, limit)
        found: list[tuple[T, int]] = []
        elements, mask, at = self._elements, self.size - 1, self._seen
        for _ in range(ready):
            place = (at & mask) << 1
            taken = self._take(elements[place], elements[place + 1])
            if taken is None:
                break
            found.append(taken)
            at += 1
        self._seen = at & _WRAP
        if not found:
            self._require_sound()
        if self._interrupts:
            self._ask_for_interrupt(1)
        return found

    # -- interrupts

    def enable_interrupts(self, after: int = 1) -> bool:
        """Ask for an interrupt; tell whether it is safe to sleep: nothing is used that was not reaped.

        Args:
            after: the interrupt may wait until that many more buffers are used; needs VIRTIO_F_EVENT_IDX, else
                the device does not wait.
        """
        self._interrupts = True
        if not self._event_index:
            self._available[_FLAGS] = 0
        self._ask_for_interrupt(after)
        fence()  # the wish before the look: whichever side is later sees the other (2.7.7.1, 2.7.10)
        return not self.pending()

    def disable_interrupts(self) -> None:
        """Tell the device that interrupts are not needed, as while polling; it may send some nevertheless."""
        self._interrupts = False
        if self._event_index:
            self._available[_RING + self.size] = (self._seen - 1) & _WRAP  # as far away as can be
        else:
            self._available[_FLAGS] = _NO_INTERRUPT

    # -- starting over

    def reset(self) -> list[T]:
        """Empty the queue and start over, once the device does not know it any more; give the tokens in flight."""
        tokens = list(self.in_flight()) if hasattr(self, "_chains") else []
        self._memory[:] = bytes(len(self._memory))
        self._free = list(range(self.size - 1, -1, -1))
        self._chains = [None] * self.size
        self._in_flight = 0
        self._next = self._published = self._seen = 0
        self._interrupts = True
        self._broken = ""
        return tokens

    def in_flight(self) -> Iterable[T]:
        """Give the tokens of the buffers in flight, in no order."""
        return [chain[0] for chain in self._chains if chain is not None]

    # -- inside

    def _add_one(self, readable: Sequence[Segment], writable: Sequence[Segment], token: T) -> None:
        """Add a buffer of one segment: the common case of networking, hence without loops."""
        self._require_sound()
        if not self._free:
            raise self._full(1)
        (iova, length), flags = (writable[0], _WRITE) if writable else (readable[0], 0)
        head = self._free[-1]
        self._describe(self._descriptors, head, iova, length, flags, 0)
        self._free.pop()
        self._commit(head, (token, (head,), length if flags else 0))

    def _add_chain(self, readable: Sequence[Segment], writable: Sequence[Segment], count: int, token: T) -> None:
        if len(self._free) < count:
            raise self._full(count)
        used = self._free[: -count - 1 : -1]
        self._write_chain(self._descriptors, readable, writable, used)
        del self._free[-count:]
        self._commit(used[0], (token, used, sum(length for _, length in writable)))

    def _add_indirect(self, readable: Sequence[Segment], writable: Sequence[Segment], count: int, token: T) -> None:
        if not self._free:
            raise self._full(1)
        head = self._free[-1]
        start = head * self._table_entries * DESCRIPTOR_SIZE
        self._write_chain(self._tables[start:], readable, writable, range(count))
        size = count * DESCRIPTOR_SIZE
        self._describe(self._descriptors, head, self._tables_iova + start, size, _INDIRECT, 0)
        self._free.pop()
        self._commit(head, (token, (head,), sum(length for _, length in writable)))

    def _write_chain(
        self, table: memoryview, readable: Sequence[Segment], writable: Sequence[Segment], places: Sequence[int]
    ) -> None:
        last = len(places) - 1
        for number, (iova, length) in enumerate((*readable, *writable)):
            flags = (_WRITE if number >= len(readable) else 0) | (_NEXT if number < last else 0)
            self._describe(table, places[number], iova, length, flags, places[number + 1] if number < last else 0)

    def _describe(self, table: memoryview, place: int, iova: int, length: int, flags: int, following: int) -> None:
        if length <= 0:
            raise BoundsError(f"{self.name}: a segment of {length} bytes; it must have at least one")
        try:
            _DESCRIPTOR.pack_into(table, place * DESCRIPTOR_SIZE, iova, length, flags, following)
        except struct.error:
            raise BoundsError(f"{self.name}: IOVA {iova:#x} or length {length:#x} does not fit") from None

    def _commit(self, head: int, chain: tuple[T, Sequence[int], int]) -> None:
        self._chains[head] = chain
        self._in_flight += 1
        at = self._next
        self._available[_RING + (at & (self.size - 1))] = head
        self._next = (at + 1) & _WRAP

    def _take(self, head: int, written: int) -> tuple[T, int] | None:
        """Take a chain back; `None`, and the queue is broken, when it can't be."""
        chain = self._chains[head] if head < self.size else None
        if chain is None:
            self._break(f"the device used buffer {head}, which is not in flight")
            return None
        token, descriptors, most = chain
        if written > most:
            self._break(f"the device says that it wrote {written} bytes into a buffer with room for {most}")
            return None
        self._chains[head] = None
        self._free.extend(descriptors)
        self._in_flight -= 1
        return token, written

    def _ask_for_interrupt(self, after: int) -> None:
        if self._event_index:
            self._available[_RING + self.size] = (self._seen + after - 1) & _WRAP

    def _break(self, reason: str) -> None:
        self._broken = f"{self.name}: {reason}; reset the device"

    def _require_sound(self) -> None:
        if self._broken:
            raise VirtioRingError(self._broken)

    def _full(self, count: int) -> VirtioQueueFullError:
        return VirtioQueueFullError(
            f"{self.name} has {len(self._free)} of {self.size} descriptors free, and {count} are needed: "
            "reap used buffers first"
        )

    def __repr__(self) -> str:
        return f"<SplitQueue {self.name} {self.size} descriptors, {self._in_flight} in flight>"
