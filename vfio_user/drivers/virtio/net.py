"""Virtio network devices (virtio 1.2, 5.1): one receive and one transmit queue."""

from __future__ import annotations

import contextlib
import enum
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from vfio_user.addresses import PciId
from vfio_user.drivers.ethernet import HEADER_SIZE, Frame, LinkDownError, RingFullError, check_sizes
from vfio_user.drivers.virtio.device import VirtioDevice
from vfio_user.drivers.virtio.errors import VirtioAbortedError, VirtioDeadlineError
from vfio_user.drivers.waiting import LOOK_EVERY, deadline_of
from vfio_user.errors import BoundsError, DeadlineError
from vfio_user.iommu.buffer import DmaSlice
from vfio_user.kernel.mman import round_up

if TYPE_CHECKING:
    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.virtio.queue import Segment
    from vfio_user.drivers.virtio.service import Item

__all__ = ["NetFeature", "VirtioNet"]

_VLAN_TAG = 4
_VIRTIO_HEADER = 12  # with VERSION_1 it has all its fields (5.1.6); all zeros asks for nothing
_LINK_UP = 1
_MOST_FRAMES = 1024


class NetFeature(enum.IntFlag):
    """Feature bits of network devices (5.1.3)."""

    MTU = 1 << 3
    MAC = 1 << 5
    STATUS = 1 << 16


class VirtioNet(VirtioDevice):
    """Drive a virtio network device: send and receive Ethernet frames in batches.

    Frames are whole, from destination address to the end of the payload, without checksum.

    Lifetime:
        See `VirtioDevice`.
    Locking:
        Any thread may call it; each queue has a lock.
    """

    match = (PciId(0x1AF4, 0x1041),)

    mac: bytes
    """Its station address, 6 bytes; zeros when the device has none."""
    max_frame: int
    """Bytes of the longest frame, without its checksum."""
    num_sent: int
    """Frames that the device has taken."""
    num_aborted: int
    """Frames that were in flight at a reset; they may or may not have been sent."""
    num_bad: int
    """Buffers that came back with less than a frame has; they were dropped."""

    # -- frames

    def send(self, frames: Sequence[Frame], *, timeout: float | None = None) -> None:
        """Hand frames over to the device, with one notification where the queue has room for all.

        Bytes are copied. A `DmaSlice` is sent from where it is: leave it alone until `flush`.

        Args:
            frames: 14 to `max_frame` bytes each.
            timeout: seconds to wait for room; by default the device's.

        Raises:
            FrameSizeError: one is too short or too long; nothing was sent.
            LinkDownError: the link is down; nothing was sent.
            RingFullError: there was no room for some in time; tells how many were handed over.
            VirtioNotRunningError: the device is stopped, or being reset.
        """
        deadline = self._check(frames, timeout)
        sent = self._submit(frames)
        while sent < len(frames):
            in_time = self._tx.wait(partial(self._has_room, self._tx.num_halts), deadline)
            sent += self._submit(frames[sent:])
            self._require_room(sent, len(frames), in_time)

    async def send_async(self, frames: Sequence[Frame], *, timeout: float | None = None) -> None:
        """Let the event loop run while there is no room for all; otherwise as `send`."""
        deadline = self._check(frames, timeout)
        sent = self._submit(frames)
        while sent < len(frames):
            in_time = await self._tx.wait_async(partial(self._has_room, self._tx.num_halts), deadline)
            sent += self._submit(frames[sent:])
            self._require_room(sent, len(frames), in_time)

    def flush(self, *, timeout: float | None = None) -> None:
        """Wait until the device has taken all frames that were handed over, so that their memory is free.

        Raises:
            VirtioDeadlineError: it has not, in time.
            VirtioAbortedError: a reset or removal came; those in flight are counted as aborted.
        """
        deadline, halts = self._deadline(timeout), self._tx.num_halts
        self._require_running()
        self._require_flushed(self._tx.wait(partial(self._is_flushed, halts), deadline), halts)

    async def flush_async(self, *, timeout: float | None = None) -> None:
        """Let the event loop run until all frames are taken; otherwise as `flush`."""
        deadline, halts = self._deadline(timeout), self._tx.num_halts
        self._require_running()
        self._require_flushed(await self._tx.wait_async(partial(self._is_flushed, halts), deadline), halts)

    def receive(self, limit: int = 256, *, timeout: float = 0.0) -> list[bytes]:
        """Take the frames that have come, in their order.

        Args:
            limit: most frames.
            timeout: seconds to wait for the first; with 0, an empty list says that there is none.

        Raises:
            BoundsError: ``limit`` is not above 0.
            VirtioDeadlineError: none came in time.
            VirtioAbortedError: a reset or removal came.
            VirtioNotRunningError: the device is stopped, or being reset.
        """
        deadline = deadline_of(timeout)
        while not (frames := self._look(limit)) and timeout:
            halts = self._rx.num_halts
            self._require_frames(self._rx.wait(partial(self._has_frames, halts), deadline), halts, timeout)
        return frames

    async def receive_async(self, limit: int = 256, *, timeout: float | None = None) -> list[bytes]:
        """Let the event loop run until frames have come, by default for the device's timeout. Raises as `receive`."""
        timeout = self.timeout if timeout is None else timeout
        deadline = deadline_of(timeout)
        while not (frames := self._look(limit)):
            halts = self._rx.num_halts
            in_time = await self._rx.wait_async(partial(self._has_frames, halts), deadline)
            self._require_frames(in_time, halts, timeout)
        return frames

    # -- link

    @property
    def link_up(self) -> bool:
        """Tell whether the link is up; a device that can't tell always has one."""
        with self._running():
            return not self.features & NetFeature.STATUS or bool(self.transport.read_config(6, 2) & _LINK_UP)

    def wait_link(self, timeout: float = 10.0) -> None:
        """Wait until the link is up.

        Raises:
            VirtioDeadlineError: it is still down after ``timeout`` seconds.
        """
        deadline = deadline_of(timeout)
        while not self.link_up:
            left = deadline - time.monotonic()
            if left <= 0:
                raise VirtioDeadlineError(f"the link of {self.name} is down, after {timeout:g} s still")
            if self.config_vector is None:
                time.sleep(min(left, 0.01))
                continue
            with contextlib.suppress(DeadlineError):
                self.config_vector.wait(min(left, LOOK_EVERY))

    # -- for VirtioDevice

    def _features(self) -> int:
        return NetFeature.MTU | NetFeature.MAC | NetFeature.STATUS

    def _num_queues(self) -> int:
        return 2

    def _setup(self, stack: ExitStack, vectors: Sequence[IrqVector | None]) -> None:
        read = self.transport.read_config
        has_mac = self.features & NetFeature.MAC
        self.mac = bytes(read(n, 1) if has_mac else 0 for n in range(6))
        mtu = read(10, 2) if self.features & NetFeature.MTU else 1500
        self.max_frame = HEADER_SIZE + _VLAN_TAG + mtu
        self.num_sent = self.num_aborted = self.num_bad = 0
        self._rx = self._add_queue(stack, vectors[0], self._arrived, self._lost, name="receive")
        self._tx = self._add_queue(stack, vectors[1], self._sent, self._aborted, name="transmit", table_entries=2)
        size = self._size = round_up(_VIRTIO_HEADER + self.max_frame, 64)
        received = min(self._rx.queue.size, _MOST_FRAMES)
        # Without indirect tables a frame in the caller's memory takes two descriptors.
        sendable = min(self._tx.queue.size // 2, _MOST_FRAMES)
        memory = stack.enter_context(self.pci.dma_alloc((received + sendable) * size))
        parts = [memory[n * size : (n + 1) * size] for n in range(received + sendable)]
        self._rx_buffers, self._tx_buffers = parts[:received], parts[received:]
        self._free = list(range(sendable))
        # Frames that were taken in and not asked for yet: buffer and bytes.
        self._came: deque[tuple[int, int]] = deque()

    def _fill(self) -> None:
        with self._rx.lock:
            for slot in range(len(self._rx_buffers)):
                self._offer(slot)
            self._rx.kick()

    # -- inside

    def _deadline(self, timeout: float | None) -> float:
        return deadline_of(self.timeout if timeout is None else timeout)

    def _check(self, frames: Sequence[Frame], timeout: float | None) -> float:
        """Refuse what can't be sent; give the deadline for the rest."""
        deadline = self._deadline(timeout)
        self._require_running()
        check_sizes(self.name, frames, self.max_frame)
        if not self.link_up:
            raise LinkDownError(f"the link of {self.name} is down; wait_link() waits for it. Nothing was sent")
        return deadline

    def _look(self, limit: int) -> list[bytes]:
        """Take what has come; see `receive`."""
        if limit < 1:
            raise BoundsError(f"limit is {limit}: give at least 1")
        self._require_running()
        self._rx.poll()
        return self._take(limit)

    def _require_room(self, sent: int, wanted: int, in_time: bool) -> None:
        if sent < wanted and not in_time:
            raise RingFullError(
                f"{self.name}: its queue was full until the deadline; {sent} of {wanted} frames were handed over", sent
            )

    def _require_flushed(self, done: bool, halts: int) -> None:
        if self._tx.num_halts != halts:
            raise VirtioAbortedError(f"{self.name} was reset or stopped; frames in flight are counted as aborted")
        if not done:
            raise VirtioDeadlineError(f"{self.name}: {self._tx.queue.num_in_flight} frames were not taken in time")

    def _require_frames(self, in_time: bool, halts: int, timeout: float) -> None:
        if not in_time:
            raise VirtioDeadlineError(f"{self.name}: no frame came within {timeout:g} s")
        if self._rx.num_halts != halts:
            raise VirtioAbortedError(f"{self.name} was reset or stopped")

    def _is_flushed(self, halts: int) -> bool:
        return self._tx.num_halts != halts or not self._tx.queue.num_in_flight

    def _has_room(self, halts: int) -> bool:
        return self._tx.num_halts != halts or bool(self._free)

    def _has_frames(self, halts: int) -> bool:
        return self._rx.num_halts != halts or bool(self._came)

    def _submit(self, frames: Sequence[Frame]) -> int:
        """Hand over as many frames as there are free buffers; give their number."""
        self._tx.poll()
        items: list[Item[tuple[int, object]]] = []
        for frame in frames:
            try:
                slot = self._free.pop()
            except IndexError:
                break
            items.append((self._segments(slot, frame), (), (slot, frame if isinstance(frame, DmaSlice) else None)))
        try:
            count = self._tx.submit(items)
        except BaseException:
            self._free += [slot for _, _, (slot, _) in items]
            raise
        self._free += [slot for _, _, (slot, _) in items[count:]]
        return count

    def _segments(self, slot: int, frame: Frame) -> list[Segment]:
        buffer = self._tx_buffers[slot]
        buffer.view[:_VIRTIO_HEADER] = bytes(_VIRTIO_HEADER)
        if isinstance(frame, DmaSlice):
            return [(buffer.iova, _VIRTIO_HEADER), (frame.iova, len(frame))]
        end = _VIRTIO_HEADER + len(frame)
        buffer.view[_VIRTIO_HEADER:end] = frame
        return [(buffer.iova, end)]

    def _take(self, limit: int) -> list[bytes]:
        frames: list[bytes] = []
        # All under the lock: a reset in between would offer the same buffers too.
        with self._rx.lock:
            while self._came and len(frames) < limit:
                slot, size = self._came.popleft()
                if size < _VIRTIO_HEADER + HEADER_SIZE:
                    self.num_bad += 1
                else:
                    frames.append(bytes(self._rx_buffers[slot].view[_VIRTIO_HEADER:size]))
                self._offer(slot)
            self._rx.kick()
        return frames

    def _offer(self, slot: int) -> None:
        self._rx.queue.add((), ((self._rx_buffers[slot].iova, self._size),), slot)

    def _arrived(self, found: list[tuple[int, int]]) -> None:
        self._came += found

    def _lost(self, _: list[int]) -> None:
        self._came.clear()

    def _sent(self, found: list[tuple[tuple[int, object], int]]) -> None:
        self.num_sent += len(found)
        self._free += [slot for (slot, _), _ in found]

    def _aborted(self, tokens: list[tuple[int, object]]) -> None:
        self.num_aborted += len(tokens)
        self._free += [slot for slot, _ in tokens]
