"""A namespace: blocks that can be read and written."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol

from vfio_user.drivers.nvme import commands
from vfio_user.drivers.nvme.errors import NvmeDeadlineError, NvmeFatalError, NvmeUnsupportedError
from vfio_user.drivers.nvme.geometry import Geometry, spans
from vfio_user.drivers.nvme.pieces import Pieces
from vfio_user.drivers.nvme.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfio_user.drivers.nvme.command import Command
    from vfio_user.drivers.nvme.commands import SubmissionEntry
    from vfio_user.drivers.nvme.controller import NvmeController
    from vfio_user.drivers.nvme.identify_namespace import IdentifyNamespace, NamespaceDescriptors
    from vfio_user.drivers.nvme.logs import SmartLog
    from vfio_user.drivers.nvme.memory import Data
    from vfio_user.drivers.nvme.queue import QueuePair

__all__ = ["Namespace"]

_MAX_BLOCKS = 1 << 16  # of one command
_MAX_RANGES = 256  # of one Dataset Management command
_MAX_RANGE_BLOCKS = (1 << 32) - 1  # of one of its ranges


class _Make(Protocol):
    """Builds one command of a transfer."""

    def __call__(self, nsid: int, lba: int, num_blocks: int) -> SubmissionEntry: ...


class Namespace:
    """The blocks of one namespace.

    `read` and `write` copy between Python's memory and the device's; `read_into` and `write_from` transfer straight
    to and from DMA memory, of any size. `submit_read` and `submit_write` start one command and return it, to be
    waited for or awaited. All take the queue to use; by default each thread keeps to one.

    A blocking call whose command is not done in time aborts it, and resets the controller if that does not help,
    before it raises `NvmeDeadlineError`: when it returns or raises, the device does not touch the memory any more.

    Lifetime:
        Belongs to its `NvmeController`; made by `NvmeController.namespaces`.
    Locking:
        Any thread may call it.
    """

    def __init__(
        self,
        controller: NvmeController,
        nsid: int,
        identify: IdentifyNamespace,
        descriptors: NamespaceDescriptors | None,
    ) -> None:
        self._controller = controller
        self.nsid = nsid
        """Namespace id."""
        self.identify = identify
        """What Identify said of it."""
        self.descriptors = descriptors
        """Its unique ids; `None` where the controller is older than NVMe 1.3."""
        self.geometry = Geometry(nsid, identify.format, identify.num_blocks)
        """What fits it."""

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self.geometry.block_size

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.geometry.num_blocks

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.num_blocks * self.block_size

    # -- copying

    def read(self, lba: int, num_blocks: int, *, queue: QueuePair | None = None, timeout: float | None = None) -> bytes:
        """Read blocks and return their bytes.

        Args:
            lba: first block.
            num_blocks: how many, from 1 on.
            queue: I/O queue to use.
            timeout: seconds for each command; by default the queue's.

        Raises:
            BoundsError: the blocks are not all inside of the namespace.
            NvmeStatusError: the controller reported an error.
            NvmeDeadlineError: it did not answer in time.
        """
        self.geometry.check(lba, num_blocks)
        out = bytearray(num_blocks * self.block_size)
        queue = self._queue(queue)
        for start, part in self._windows(memoryview(out)):
            self._copy(commands.read, part, lba + start, queue, timeout, writes=True)
        return bytes(out)

    def write(
        self,
        lba: int,
        data: Data,
        *,
        force_unit_access: bool = False,
        queue: QueuePair | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write a whole number of blocks from any bytes, which are copied to DMA memory first.

        Args:
            lba: first block.
            data: what to write.
            force_unit_access: go past the controller's write cache.
            queue: I/O queue to use.
            timeout: seconds for each command; by default the queue's.

        Raises:
            AlignmentError: ``data`` is not a whole number of blocks.
            BoundsError: the blocks are not all inside of the namespace.
            NvmeStatusError: the controller reported an error.
            NvmeDeadlineError: it did not answer in time.
        """
        view = self.geometry.whole_blocks(data, lba)
        make = functools.partial(commands.write, force_unit_access=force_unit_access)
        queue = self._queue(queue)
        for start, part in self._windows(view):
            self._copy(make, part, lba + start, queue, timeout, writes=False)

    # -- straight to and from DMA memory

    def read_into(
        self, buffer: Data, lba: int, *, queue: QueuePair | None = None, timeout: float | None = None
    ) -> None:
        """Fill DMA memory of any size with blocks; more than one command takes is split.

        Args:
            buffer: mapped for the device, a whole number of blocks, starting at a multiple of 4 bytes: a
                `DmaBuffer`, a slice of one, a numpy array over one.
            lba: first block.
            queue: I/O queue to use.
            timeout: seconds for each command; by default the queue's.

        Raises:
            AlignmentError: the buffer is not a whole number of blocks, or not aligned.
            BoundsError: the blocks are not all inside of the namespace.
            IovaError: the buffer is not mapped for the device.
            NvmeStatusError: the controller reported an error.
            NvmeDeadlineError: it did not answer in time.
        """
        view = self.geometry.whole_blocks(buffer, lba)
        self._run(self._transfer(commands.read, view, lba, queue, writes=True), timeout)

    def write_from(
        self,
        buffer: Data,
        lba: int,
        *,
        force_unit_access: bool = False,
        queue: QueuePair | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write DMA memory of any size to blocks; arguments and errors as of `read_into` and `write`."""
        view = self.geometry.whole_blocks(buffer, lba)
        make = functools.partial(commands.write, force_unit_access=force_unit_access)
        self._run(self._transfer(make, view, lba, queue, writes=False), timeout)

    async def read_into_async(
        self, buffer: Data, lba: int, *, queue: QueuePair | None = None, timeout: float | None = None
    ) -> None:
        """Do as `read_into`, letting the event loop run meanwhile."""
        view = self.geometry.whole_blocks(buffer, lba)
        await self._run_async(self._transfer(commands.read, view, lba, queue, writes=True), timeout)

    async def write_from_async(
        self, buffer: Data, lba: int, *, queue: QueuePair | None = None, timeout: float | None = None
    ) -> None:
        """Do as `write_from`, letting the event loop run meanwhile."""
        view = self.geometry.whole_blocks(buffer, lba)
        await self._run_async(self._transfer(commands.write, view, lba, queue, writes=False), timeout)

    def submit_read(self, buffer: Data, lba: int, *, queue: QueuePair | None = None) -> Command:
        """Start one read into DMA memory of at most `QueuePair.max_transfer` bytes and return at once.

        Raises:
            NvmeQueueFullError: all entries of the queue are in flight.
            VfioError: the buffer does not fit, as for `read_into`.
        """
        view = self.geometry.whole_blocks(buffer, lba)
        entry = commands.read(self.nsid, lba, len(view) // self.block_size)
        return self._queue(queue).submit(entry, view, writes=True)

    def submit_write(self, buffer: Data, lba: int, *, queue: QueuePair | None = None) -> Command:
        """Start one write from DMA memory of at most `QueuePair.max_transfer` bytes; see `submit_read`."""
        view = self.geometry.whole_blocks(buffer, lba)
        entry = commands.write(self.nsid, lba, len(view) // self.block_size)
        return self._queue(queue).submit(entry, view, writes=False)

    def pieces(self, buffer: Data, num_blocks: int = 1, *, queue: QueuePair | None = None) -> Pieces:
        """Cut DMA memory into pieces of ``num_blocks`` blocks, for arrays of commands; see `Pieces`. Needs numpy."""
        return Pieces(self, self._queue(queue), buffer, num_blocks)

    # -- without data

    def flush(self, *, queue: QueuePair | None = None, timeout: float | None = None) -> None:
        """Have everything that was written before put on the medium."""
        pieces = [(commands.flush(self.nsid), None)]
        self._run(Transfer(self._queue(queue), pieces, writes=False), timeout)

    def write_zeroes(
        self,
        lba: int,
        num_blocks: int,
        *,
        deallocate: bool = False,
        queue: QueuePair | None = None,
        timeout: float | None = None,
    ) -> None:
        """Make blocks read as zeroes, without transferring any; ``deallocate`` permits to free them.

        Raises:
            NvmeUnsupportedError: the controller has no Write Zeroes.
            BoundsError: the blocks are not all inside of the namespace.
        """
        self.geometry.check(lba, num_blocks)
        if not self._controller.identify.has_write_zeroes:
            raise NvmeUnsupportedError("the controller has no Write Zeroes command; write() zeroes instead")
        pieces = [
            (commands.write_zeroes(self.nsid, start, count, deallocate=deallocate), None)
            for start, count in spans(lba, num_blocks, _MAX_BLOCKS)
        ]
        self._run(Transfer(self._queue(queue), pieces, writes=False), timeout)

    def deallocate(
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        queue: QueuePair | None = None,
        timeout: float | None = None,
    ) -> None:
        """Tell the controller that blocks are not needed any more: ``(lba, num_blocks)`` pairs, any number.

        What they read as from then on is in `IdentifyNamespace.deallocate_features`.

        Raises:
            NvmeUnsupportedError: the controller has no Dataset Management.
            BoundsError: a range is not inside of the namespace.
        """
        if not self._controller.identify.has_dataset_management:
            raise NvmeUnsupportedError("the controller has no Dataset Management command")
        chosen = self._queue(queue)
        cut: list[tuple[int, int]] = []
        for lba, num_blocks in ranges:
            self.geometry.check(lba, num_blocks)
            cut += spans(lba, num_blocks, _MAX_RANGE_BLOCKS)
        for at in range(0, len(cut), _MAX_RANGES):
            batch = cut[at : at + _MAX_RANGES]
            content = commands.dataset_ranges(batch)
            page = self._controller.pages.take()
            page.view[: len(content)] = content
            pieces = [(commands.deallocate(self.nsid, len(batch)), page.view[: len(content)])]
            transfer = Transfer(chosen, pieces, writes=False)
            try:
                self._run(transfer, timeout)
            finally:
                transfer.when_settled(page.close)

    def smart(self) -> SmartLog:
        """Read the health log of this namespace alone; few controllers keep one (LPA bit 0)."""
        return self._controller.admin_commands.smart(self.nsid)

    # -- inside

    def _queue(self, queue: QueuePair | None) -> QueuePair:
        return self._controller.default_queue() if queue is None else queue

    def _transfer(self, make: _Make, view: memoryview, lba: int, queue: QueuePair | None, *, writes: bool) -> Transfer:
        """Split a transfer into commands."""
        chosen = self._queue(queue)
        if self.block_size > min(chosen.max_transfer, self._controller.bounce.buffer_size):
            raise NvmeUnsupportedError(
                f"blocks of {self.block_size} bytes: this driver moves {chosen.max_transfer} at a time at most"
            )
        most = min(chosen.max_transfer // self.block_size, _MAX_BLOCKS)
        pieces = (
            (
                make(self.nsid, start, count),
                view[(start - lba) * self.block_size : (start - lba + count) * self.block_size],
            )
            for start, count in spans(lba, len(view) // self.block_size, most)
        )
        return Transfer(chosen, pieces, writes=writes)

    def _copy(
        self,
        make: _Make,
        part: memoryview,
        lba: int,
        queue: QueuePair,
        timeout: float | None,
        *,
        writes: bool,
    ) -> None:
        """Transfer one window through DMA memory that is lent from the pool."""
        buffer = self._controller.bounce.take()
        window = buffer.view[: len(part)]
        transfer = Transfer(queue, (), writes=writes)
        try:
            if not writes:
                window[:] = part
            transfer = self._transfer(make, window, lba, queue, writes=writes)
            self._run(transfer, timeout)
            if writes:
                part[:] = window
        finally:
            # An interrupted wait leaves commands in flight: the memory goes back when they are done.
            transfer.when_settled(buffer.close)

    def _run(self, transfer: Transfer, timeout: float | None) -> None:
        try:
            transfer.run(transfer.queue.timeout if timeout is None else timeout)
        except (NvmeDeadlineError, NvmeFatalError) as exc:
            exc.add_note(self._controller.recover(transfer.in_flight))
            raise

    async def _run_async(self, transfer: Transfer, timeout: float | None) -> None:
        import asyncio

        try:
            await transfer.run_async(transfer.queue.timeout if timeout is None else timeout)
        except (NvmeDeadlineError, NvmeFatalError) as exc:
            exc.add_note(await asyncio.to_thread(self._controller.recover, transfer.in_flight))
            raise

    def _windows(self, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Cut memory into pieces that fit a bounce buffer, each with its first block."""
        step = self._controller.bounce.buffer_size
        for at in range(0, len(view), step):
            yield at // self.block_size, view[at : at + step]

    def __repr__(self) -> str:
        return f"<Namespace {self.nsid}: {self.num_blocks} blocks of {self.block_size} bytes>"
