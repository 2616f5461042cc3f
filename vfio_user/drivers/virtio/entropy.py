"""The entropy device of virtio: one queue, random bytes (virtio 1.2, 5.4)."""

from __future__ import annotations

import time

from vfio_user.drivers.base import DriverBase
from vfio_user.drivers.virtio.errors import VirtioUnsupportedError
from vfio_user.drivers.virtio.layout import QueueLayout
from vfio_user.drivers.virtio.mmio import VirtioMmio
from vfio_user.drivers.virtio.queue import SplitQueue
from vfio_user.errors import BoundsError
from vfio_user.iommu.buffer import DmaBuffer, DmaSlice
from vfio_user.platform.device import PlatformDevice

__all__ = ["MmioEntropy"]

_ENTROPY = 4
_QUEUE_SIZE = 8
_DATA = 2048  # of one page: queue first, data behind


class MmioEntropy(DriverBase):
    """Drive an entropy device behind the MMIO transport.

    Lifetime:
        See `DriverBase`. Probing makes one queue, in memory of its own unless it was given some; removing resets the
        device before that is freed.
    Locking:
        One call at a time.
    """

    MEMORY = 4096
    """Bytes of memory that it needs."""
    LIMIT = MEMORY - _DATA
    """Most bytes of one request."""

    def __init__(self, platform: PlatformDevice, memory: DmaSlice | None = None) -> None:
        """Take a device, which is not touched yet.

        Args:
            platform: the device.
            memory: `MEMORY` bytes that it reaches, at a multiple of 16; by default allocated in its address space.
        """
        super().__init__(platform)
        self.platform = platform
        """The device that it drives."""
        self._given = memory
        self._own: DmaBuffer | None = None

    transport: VirtioMmio
    """Its registers."""

    def probe(self) -> None:
        """Bring the device up with one queue.

        Raises:
            VirtioUnsupportedError: it is no entropy device, or a legacy one.
        """
        self.transport = VirtioMmio(self.platform)
        if self.transport.device_id != _ENTROPY:
            raise VirtioUnsupportedError(f"{self.platform.name} is device {self.transport.device_id}, not {_ENTROPY}")
        try:
            memory = self._memory()
            self.transport.begin()
            self._data = memory[_DATA:]
            self._queue: SplitQueue[object] = SplitQueue(
                _QUEUE_SIZE,
                memory[: QueueLayout(_QUEUE_SIZE).num_bytes],
                notify=lambda: self.transport.notify(0),
                name=f"{self.platform.name} queue 0",
            )
            self.transport.add_queue(0, self._queue)
            self.transport.go()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Reset the device, then give the memory back."""
        self.transport.stop()
        if self._own is not None:
            self._own.close()
            self._own = None

    def read(self, size: int, *, timeout: float = 10.0) -> bytes:
        """Give ``size`` random bytes.

        Args:
            size: 1 to `LIMIT`.
            timeout: seconds.

        Raises:
            BoundsError: more than fits.
            VirtioDeadlineError: the device took longer; it may still write to its memory.
        """
        if not 1 <= size <= self.LIMIT:
            raise BoundsError(f"{size} bytes: give 1 to {self.LIMIT}")
        found, deadline = bytearray(), time.monotonic() + timeout
        while len(found) < size:  # the device may give fewer than it was asked for
            self._queue.add([], [(self._data.iova, size - len(found))], None)
            self._queue.kick()
            while not (used := self._queue.reap()):
                self.transport.wait(max(0.0, deadline - time.monotonic()))
            found += self._data.view[: used[0][1]]
        return bytes(found)

    def _memory(self) -> DmaSlice:
        if self._given is not None:
            return self._given
        self._own = self.platform.dma_alloc(self.MEMORY)
        return self._own[:]
