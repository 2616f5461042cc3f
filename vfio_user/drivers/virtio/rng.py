"""Virtio entropy devices (virtio 1.2, 5.4): one queue, into which the device writes random bytes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vfio_user.addresses import PciId
from vfio_user.drivers.virtio.device import VirtioDevice
from vfio_user.drivers.virtio.errors import VirtioAbortedError, VirtioDeadlineError, VirtioQueueFullError
from vfio_user.drivers.waiting import deadline_of
from vfio_user.errors import BoundsError

if TYPE_CHECKING:
    from vfio_user.device.vector import IrqVector

__all__ = ["VirtioRng"]

_LARGEST = 4096


class _Wish:
    """A buffer that the device is to fill."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.data: bytes | None = None
        self.aborted = False

    def settled(self) -> bool:
        return self.data is not None or self.aborted


class VirtioRng(VirtioDevice):
    """Drive a virtio entropy device.

    Lifetime:
        See `VirtioDevice`.
    Locking:
        Any thread may call it.
    """

    match = (PciId(0x1AF4, 0x1044),)

    def read(self, size: int, *, timeout: float | None = None) -> bytes:
        """Ask for random bytes until there are ``size`` of them.

        Raises:
            BoundsError: a negative number.
            VirtioDeadlineError: they did not come in time.
            VirtioAbortedError: a reset or removal came.
        """
        if size < 0:
            raise BoundsError(f"{size} bytes: give 0 or more")
        deadline = deadline_of(self.timeout if timeout is None else timeout)
        data = b""
        while len(data) < size:
            data += self._read_some(min(size - len(data), _LARGEST), deadline)
        return data

    def _read_some(self, size: int, deadline: float) -> bytes:
        self._require_running()
        if not self._free:
            raise VirtioQueueFullError(f"{self.name}: {len(self._buffers)} reads are under way already")
        wish = _Wish(self._free.pop())
        buffer = self._buffers[wish.slot]
        try:
            self._service.submit([([], [(buffer.iova, size)], wish)])
        except BaseException:
            self._free.append(wish.slot)
            raise
        if not self._service.wait(wish.settled, deadline):
            raise VirtioDeadlineError(f"{self.name}: no {size} random bytes came in time")
        if wish.data is None:
            raise VirtioAbortedError(f"{self.name}: a reset or removal ended the reading")
        return wish.data

    def _features(self) -> int:
        return 0

    def _num_queues(self) -> int:
        return 1

    def _setup(self, stack: ExitStack, vectors: Sequence[IrqVector | None]) -> None:
        self._service = self._add_queue(stack, vectors[0], self._filled, self._aborted, name="request")
        count = min(8, self._service.queue.size)
        memory = stack.enter_context(self.pci.dma_alloc(count * _LARGEST))
        self._buffers = [memory[n * _LARGEST : (n + 1) * _LARGEST] for n in range(count)]
        self._free = list(range(count))

    def _filled(self, found: list[tuple[_Wish, int]]) -> None:
        for wish, written in found:
            wish.data = bytes(self._buffers[wish.slot].view[:written])
            self._free.append(wish.slot)

    def _aborted(self, wishes: list[_Wish]) -> None:
        for wish in wishes:
            wish.aborted = True
            self._free.append(wish.slot)
