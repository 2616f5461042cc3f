"""Virtio block devices (virtio 1.2, 5.2)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from vfio_user.addresses import PciId
from vfio_user.drivers.virtio.device import VirtioDevice
from vfio_user.drivers.virtio.errors import (
    VirtioDeadlineError,
    VirtioQueueFullError,
    VirtioUnsupportedError,
)
from vfio_user.drivers.virtio.request import Request
from vfio_user.drivers.virtio.transfer import flights, run, run_async
from vfio_user.drivers.waiting import deadline_of
from vfio_user.errors import AlignmentError, BoundsError, VfioError

if TYPE_CHECKING:
    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.virtio.queue import Segment
    from vfio_user.iommu.buffer import DmaSlice

__all__ = ["SECTOR", "BlkFeature", "VirtioBlk"]

SECTOR = 512
"""Bytes of a sector, in which places and sizes are counted, whatever the block size is (5.2.2)."""

_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_SLOT = 64  # header, status and the range of a discard, apart from those of others
_STATUS_OFFSET = 16
_RANGE_OFFSET = 32
_ID_SIZE = 20
_MOST_BYTES = 1 << 20
_MOST_SEGMENTS = 62
_BOUNCE = 256 << 10
_UNSETTLED = 0xFF


class BlkFeature(enum.IntFlag):
    """Feature bits of block devices (5.2.3)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class _Type(enum.IntEnum):
    """Types of requests (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class VirtioBlk(VirtioDevice):
    """Drive a virtio block device: ``submit_…`` give a `Request` in flight, the others wait for theirs.

    A `Request` can be awaited; large transfers have `read_into_async` and `write_from_async`.

    ::

        with vfio_user.open("0000:01:00.0") as pci, VirtioBlk(pci) as disk:
            data = disk.read(sector=0, count=8)

    Lifetime:
        See `VirtioDevice`.
    Locking:
        Any thread may call it.
    """

    match = (PciId(0x1AF4, 0x1042),)

    capacity: int
    """Sectors that it has."""
    block_size: int
    """Bytes of the blocks that suit it best; sectors work too."""

    # -- what it is

    @property
    def read_only(self) -> bool:
        """Tell whether it refuses to be written."""
        return bool(self.features & BlkFeature.RO)

    @property
    def max_transfer(self) -> int:
        """Most bytes of one request; larger transfers are split."""
        return self._most_bytes

    @property
    def num_in_flight(self) -> int:
        """Requests that are not done."""
        return self._service.queue.num_in_flight

    def get_id(self, *, timeout: float | None = None) -> str:
        """Ask for its serial number, 20 characters at most."""
        with self.pci.dma_alloc(4096) as buffer:
            part = buffer[:_ID_SIZE]
            self._submit("read of the id", _Type.GET_ID, 0, [], self._cut(part), part).wait(timeout)
            return bytes(part).split(b"\0")[0].decode("ascii", errors="replace")

    # -- requests in flight

    def submit_read(self, buffer: DmaSlice, sector: int) -> Request:
        """Begin to read into DMA memory.

        Args:
            buffer: a multiple of 512 bytes, `max_transfer` at most.
            sector: the first one to read.

        Raises:
            AlignmentError, BoundsError: not whole sectors, too many, or outside of the device.
            VirtioQueueFullError: too many requests are in flight.
            VirtioNotRunningError: the device is stopped, or being reset.
        """
        count = self._sectors(buffer, sector)
        return self._submit(f"read of {count} sectors at {sector}", _Type.IN, sector, [], self._cut(buffer), buffer)

    def submit_write(self, buffer: DmaSlice, sector: int) -> Request:
        """Begin to write DMA memory; arguments and errors as `submit_read`.

        Raises:
            VirtioUnsupportedError: the device is read-only.
        """
        count = self._sectors(buffer, sector)
        self._require_writable()
        return self._submit(f"write of {count} sectors at {sector}", _Type.OUT, sector, self._cut(buffer), [], buffer)

    def submit_flush(self) -> Request:
        """Begin to make durable what was written.

        Raises:
            VirtioUnsupportedError: the device has no such request: what is written is durable.
        """
        self._require_feature(BlkFeature.FLUSH, "flush")
        return self._submit("flush", _Type.FLUSH, 0, [], [], None)

    def submit_discard(self, sector: int, count: int) -> Request:
        """Begin to discard sectors: their content is not needed any more."""
        self._require_feature(BlkFeature.DISCARD, "discard")
        return self._submit_range("discard", _Type.DISCARD, sector, count)

    def submit_write_zeroes(self, sector: int, count: int) -> Request:
        """Begin to write zeros, without any data going there."""
        self._require_feature(BlkFeature.WRITE_ZEROES, "write zeroes")
        return self._submit_range("write zeroes", _Type.WRITE_ZEROES, sector, count)

    # -- and waited for

    def read_into(self, buffer: DmaSlice, sector: int, *, timeout: float | None = None) -> None:
        """Read into DMA memory of any size, several requests in flight.

        After the first error no more are submitted, and those in flight are waited for.
        """
        run(flights(self.submit_read, self._pieces(buffer, sector)), self._deadline(timeout))

    def write_from(self, buffer: DmaSlice, sector: int, *, timeout: float | None = None) -> None:
        """Write DMA memory of any size, several requests in flight; see `read_into`."""
        run(flights(self.submit_write, self._pieces(buffer, sector)), self._deadline(timeout))

    async def read_into_async(self, buffer: DmaSlice, sector: int, *, timeout: float | None = None) -> None:
        """Read while the event loop runs; see `read_into`. A task that is cancelled leaves requests in flight."""
        await run_async(flights(self.submit_read, self._pieces(buffer, sector)), self._deadline(timeout))

    async def write_from_async(self, buffer: DmaSlice, sector: int, *, timeout: float | None = None) -> None:
        """Write while the event loop runs; see `read_into_async`."""
        await run_async(flights(self.submit_write, self._pieces(buffer, sector)), self._deadline(timeout))

    def read(self, sector: int, count: int, *, timeout: float | None = None) -> bytes:
        """Read sectors; copies.

        Raises:
            BoundsError: outside of the device.
            VirtioStatusError: the device reported an error.
            VirtioDeadlineError: not done in time; the device was reset for that.
            VirtioAbortedError: a reset or removal came.
        """
        self._check_range(sector, count)
        parts = []
        for first in range(sector, sector + count, _BOUNCE // SECTOR):
            size = min(sector + count - first, _BOUNCE // SECTOR) * SECTOR
            with self._bounced(size) as buffer:
                self.read_into(buffer, first, timeout=timeout)
                parts.append(bytes(buffer))
        return b"".join(parts)

    def write(self, sector: int, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """Write whole sectors; copies. Raises as `read`, and VirtioUnsupportedError when the device is read-only."""
        view = memoryview(data).cast("B")
        self._check_range(sector, self._whole(view))
        for begin in range(0, len(view), _BOUNCE):
            part = view[begin : begin + _BOUNCE]
            with self._bounced(len(part)) as buffer:
                buffer.view[:] = part
                self.write_from(buffer, sector + begin // SECTOR, timeout=timeout)

    def flush(self, *, timeout: float | None = None) -> None:
        """Make durable what was written; does nothing on a device that always does."""
        self._require_running()
        if self.features & BlkFeature.FLUSH:
            self.submit_flush().wait(timeout)

    def discard(self, sector: int, count: int, *, timeout: float | None = None) -> None:
        """Discard sectors; see `submit_discard`."""
        self.submit_discard(sector, count).wait(timeout)

    def write_zeroes(self, sector: int, count: int, *, timeout: float | None = None) -> None:
        """Write zeros; see `submit_write_zeroes`."""
        self.submit_write_zeroes(sector, count).wait(timeout)

    # -- for VirtioDevice

    def _features(self) -> int:
        known = BlkFeature(0)
        for feature in BlkFeature:
            known |= feature
        return known

    def _num_queues(self) -> int:
        return 1

    def _setup(self, stack: ExitStack, vectors: Sequence[IrqVector | None]) -> None:
        read, has = self.transport.read_config, self.features
        self.capacity = read(0, 8)
        self.block_size = read(20, 4) if has & BlkFeature.BLK_SIZE else SECTOR
        self._most_in_segment = (read(8, 4) if has & BlkFeature.SIZE_MAX else 0) or _MOST_BYTES
        segments = min((read(12, 4) if has & BlkFeature.SEG_MAX else 1) or 1, _MOST_SEGMENTS)
        self._most_bytes = min(self._most_in_segment * segments, _MOST_BYTES) // SECTOR * SECTOR
        self._most_discarded = read(36, 4) if has & BlkFeature.DISCARD else 0
        self._most_zeroed = read(48, 4) if has & BlkFeature.WRITE_ZEROES else 0
        tables = -(-self._most_bytes // self._most_in_segment) + 2
        self._service = self._add_queue(
            stack, vectors[0], self._settle, self._abort, name="request", table_entries=tables
        )
        # As many slots as there can be requests: an indirect table each, or header, data and status in the queue.
        size = self._service.queue.size
        slots = stack.enter_context(self.pci.dma_alloc(size * _SLOT))
        self._slots = [slots[n * _SLOT : (n + 1) * _SLOT] for n in range(size)]
        self._free = list(range(size))
        self._bounce = stack.enter_context(self.pci.address_space.pool(_BOUNCE))

    # -- inside

    def _submit(
        self,
        name: str,
        kind: _Type,
        sector: int,
        readable: Sequence[Segment],
        writable: Sequence[Segment],
        data: object,
        extra: bytes = b"",
    ) -> Request:
        self._require_running()
        try:
            slot = self._free.pop()
        except IndexError:
            raise self._full() from None
        memory = self._slots[slot]
        _HEADER.pack_into(memory.view, 0, kind, 0, sector)
        memory.view[_STATUS_OFFSET] = _UNSETTLED
        memory.view[_RANGE_OFFSET : _RANGE_OFFSET + len(extra)] = extra
        request = Request(self._service, name, slot, data, self.timeout)
        more = [(memory.iova + _RANGE_OFFSET, len(extra))] if extra else []
        item = (
            [(memory.iova, _HEADER.size), *readable, *more],
            [*writable, (memory.iova + _STATUS_OFFSET, 1)],
            request,
        )
        try:
            if not self._service.submit([item]):
                raise self._full()
        except BaseException:
            self._free.append(slot)
            raise
        return request

    def _submit_range(self, what: str, kind: _Type, sector: int, count: int) -> Request:
        self._check_range(sector, count)
        self._require_writable()
        most = self._most_discarded if kind is _Type.DISCARD else self._most_zeroed
        if count > most:
            raise BoundsError(f"{self.name}: {what} of {count} sectors; {most} at most in one request")
        name = f"{what} of {count} sectors at {sector}"
        return self._submit(name, kind, 0, [], [], None, extra=_RANGE.pack(sector, count, 0))

    def _pieces(self, buffer: DmaSlice, sector: int) -> list[tuple[DmaSlice, int]]:
        """Cut memory of any size into what one request can transfer; with the sector of each."""
        self._check_range(sector, self._whole(buffer))
        most = self._most_bytes
        return [(buffer[at : at + most], sector + at // SECTOR) for at in range(0, len(buffer), most)]

    def _deadline(self, timeout: float | None) -> float:
        return deadline_of(self.timeout if timeout is None else timeout)

    @contextmanager
    def _bounced(self, size: int) -> Iterator[DmaSlice]:
        """Lend memory of the driver's for one transfer."""
        with self._bounce.take() as buffer:
            try:
                yield buffer[:size]
            except VirtioDeadlineError as late:
                self.reset()  # else the device might use the memory when it is somebody else's
                late.add_note("The device was reset for that, and works again.")
                raise
            except VfioError:
                raise  # all requests have ended, or none is taken before a reset has ended them
            except BaseException:  # Ctrl-C, for one: requests are in flight
                with suppress(VfioError):
                    self.reset()
                raise

    def _settle(self, found: list[tuple[Request, int]]) -> None:
        for request, _ in found:
            request.settle(self._slots[request.slot].view[_STATUS_OFFSET])
            self._free.append(request.slot)

    def _abort(self, requests: list[Request]) -> None:
        for request in requests:
            request.abort()
            self._free.append(request.slot)

    def _cut(self, buffer: DmaSlice) -> list[Segment]:
        most = self._most_in_segment
        return [(buffer.iova + at, min(most, len(buffer) - at)) for at in range(0, len(buffer), most)]

    def _sectors(self, buffer: DmaSlice, sector: int) -> int:
        """Check memory and place of one request; give the number of sectors."""
        count = self._whole(buffer)
        self._check_range(sector, count)
        if len(buffer) > self._most_bytes:
            raise BoundsError(f"{len(buffer)} bytes in one request; {self._most_bytes} at most: use read_into()")
        return count

    @staticmethod
    def _whole(buffer: DmaSlice | memoryview) -> int:
        count, rest = divmod(len(buffer), SECTOR)
        if rest:
            raise AlignmentError(f"{len(buffer)} bytes are no whole sectors of {SECTOR}")
        return count

    def _check_range(self, sector: int, count: int) -> None:
        self._require_running()
        if count < 1 or sector < 0 or sector + count > self.capacity:
            raise BoundsError(f"{count} sectors at {sector}: {self.name} has {self.capacity}, and the least is 1")

    def _require_writable(self) -> None:
        if self.read_only:
            raise VirtioUnsupportedError(f"{self.name} is read-only")

    def _require_feature(self, feature: BlkFeature, what: str) -> None:
        self._require_running()
        if not self.features & feature:
            raise VirtioUnsupportedError(f"{self.name} has no {what} (VIRTIO_BLK_F_{feature.name})")

    def _full(self) -> VirtioQueueFullError:
        return VirtioQueueFullError(f"{self.name}: {self.num_in_flight} requests are in flight; wait for one first")
