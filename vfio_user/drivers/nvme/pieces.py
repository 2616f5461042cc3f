"""Arrays of commands that move blocks between a namespace and one buffer, piece by piece."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vfio_user.drivers.nvme.errors import NvmeQueueFullError
from vfio_user.drivers.nvme.opcodes import IoOpcode
from vfio_user.drivers.nvme.prp import list_stride, prp_fields, prp_pages
from vfio_user.errors import ArgumentError, BoundsError, VfioError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import ArrayLike

    from vfio_user.drivers.nvme.memory import Data
    from vfio_user.drivers.nvme.namespace import Namespace
    from vfio_user.drivers.nvme.queue import QueuePair
    from vfio_user.iommu import DmaBuffer

__all__ = ["Pieces", "completion_dtype", "submission_dtype"]


def submission_dtype() -> numpy.dtype[Any]:
    """Give numpy's type of a submission queue entry (NVMe Base 2.0, 3.3.3.1), with the fields of a read or write."""
    import numpy

    return numpy.dtype(
        [
            ("opcode", "u1"),
            ("flags", "u1"),
            ("command_id", "<u2"),
            ("nsid", "<u4"),
            ("cdw2", "<u4"),
            ("cdw3", "<u4"),
            ("mptr", "<u8"),
            ("prp1", "<u8"),
            ("prp2", "<u8"),
            ("lba", "<u8"),
            ("cdw12", "<u4"),
            ("cdw13", "<u4"),
            ("cdw14", "<u4"),
            ("cdw15", "<u4"),
        ]
    )


def completion_dtype() -> numpy.dtype[Any]:
    """Give numpy's type of a completion queue entry (3.3.3.2); bit 0 of ``status`` is the phase."""
    import numpy

    return numpy.dtype(
        [
            ("result", "<u4"),
            ("result_high", "<u4"),
            ("sq_head", "<u2"),
            ("sqid", "<u2"),
            ("command_id", "<u2"),
            ("status", "<u2"),
        ]
    )


class Pieces:
    """A buffer cut into pieces of equal size, with a command for each that stands ready in a table.

    ::

        with namespace.pieces(buffer, num_blocks=8) as pieces:
            rows = numpy.arange(len(pieces), dtype="u8")
            pieces.read(rows, lbas)
            queue.submit_rows(pieces.table, rows, keep=pieces)
            count = queue.reap(rows, timeout=1)     # the rows that are done, in any order

    Where each piece lies is worked out once; for a transfer only the block number and the opcode are set.

    Lifetime:
        `close`, or the ``with`` block, frees the PRP lists: only when no command that uses them is in flight.
    Locking:
        None: who changes a row that another thread submits gets what he deserves.
    """

    def __init__(self, namespace: Namespace, queue: QueuePair, buffer: Data, num_blocks: int) -> None:
        """Prepare commands for ``queue``, or any other of the same controller.

        Raises:
            BoundsError: a piece is more than one command may transfer, or the buffer has less than one piece.
            AlignmentError: the buffer does not start at a multiple of 4 bytes.
            IovaError: the buffer is not mapped for the device.
        """
        import numpy

        namespace.geometry.check(0, num_blocks)
        size = num_blocks * namespace.block_size
        if size > queue.max_transfer:
            raise BoundsError(f"pieces of {size} bytes: one command transfers {queue.max_transfer} at most")
        view, iova = queue._finder.find(buffer, writable=True)
        count = view.nbytes // size
        if not count:
            raise BoundsError(f"a buffer of {view.nbytes} bytes has no piece of {size}")
        self.namespace = namespace
        """The namespace that its commands read and write."""
        self.num_blocks = num_blocks
        """Blocks of each piece."""
        self.view = view.cast("B")
        """The buffer."""
        self.size = size
        """Bytes of each piece."""
        self.table: numpy.ndarray[Any, Any] = numpy.zeros(count, submission_dtype())
        """The commands, a row for each piece; `submission_dtype`."""
        self.table["opcode"] = IoOpcode.READ
        self.table["nsid"] = namespace.nsid
        self.table["cdw12"] = num_blocks - 1
        self._last = namespace.num_blocks - num_blocks
        self._lists: DmaBuffer | None = None
        self._lay_out(queue, iova)

    def _lay_out(self, queue: QueuePair, iova: int) -> None:
        page = queue._page_size
        stride = list_stride(self.size, page) if self.size > page else 0
        if stride:
            self._lists = queue._finder.space.alloc(-(-stride * len(self) // page) * page)
        for row in range(len(self)):
            start = self._lists.iova + row * stride if self._lists is not None else 0
            pages = prp_pages([(iova + row * self.size, self.size)], page)
            prp1, prp2, content = prp_fields(pages, start, stride, page)
            if self._lists is not None:
                self._lists.view[row * stride : row * stride + len(content)] = content
            self.table[row]["prp1"], self.table[row]["prp2"] = prp1, prp2

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> memoryview:
        """Give the bytes of a piece."""
        if not 0 <= row < len(self):
            raise BoundsError(f"there is no piece {row}: there are {len(self)}")
        return self.view[row * self.size : (row + 1) * self.size]

    def read(self, rows: ArrayLike | slice, lbas: ArrayLike) -> None:
        """Make the commands of some rows reads from these blocks on.

        Args:
            rows: row numbers, or a slice.
            lbas: the first block of each.

        Raises:
            BoundsError: blocks are not all inside of the namespace, or there is no such row.
        """
        self._set(IoOpcode.READ, rows, lbas)

    def write(self, rows: ArrayLike | slice, lbas: ArrayLike) -> None:
        """Make the commands of some rows writes; see `read`."""
        self._set(IoOpcode.WRITE, rows, lbas)

    def _set(self, opcode: IoOpcode, rows: Any, lbas: ArrayLike) -> None:
        import numpy

        lbas = numpy.asarray(lbas)
        if lbas.dtype.kind not in "iu":
            raise ArgumentError(f"block numbers are integers, not {lbas.dtype}")
        if lbas.size and not 0 <= int(lbas.min()) <= int(lbas.max()) <= self._last:
            raise BoundsError(
                f"blocks {lbas.min()} to {int(lbas.max()) + self.num_blocks - 1} are not all inside of namespace "
                f"{self.namespace.nsid}, which has blocks 0 to {self.namespace.num_blocks - 1}"
            )
        try:
            self.table["lba"][rows] = lbas
            self.table["opcode"][rows] = opcode
        except (IndexError, ValueError) as error:
            raise BoundsError(f"rows and blocks don't fit the {len(self)} pieces: {error}") from None

    def run(self, rows: ArrayLike, *, queue: QueuePair, timeout: float | None = None) -> numpy.ndarray[Any, Any]:
        """Do the commands of some rows and wait for all; give the completion of each, in the order of ``rows``.

        As many as the queue has room for are in flight at a time. The queue must have no other arrays in flight.

        Args:
            rows: different row numbers.
            queue: I/O queue to use.
            timeout: seconds without any completion; by default the queue's.

        Raises:
            BoundsError: there is no such row, or one is given twice.
            NvmeDeadlineError: some were not completed in time.
            NvmeError: the queue takes no commands any more. Whatever was raised, what was in flight was aborted, if
                need be by a reset of the controller: the device does not touch the buffer any more.
        """
        import numpy

        wanted = numpy.ascontiguousarray(rows, "u8")
        if len(numpy.unique(wanted)) != len(wanted) or (wanted >= len(self)).any():
            raise BoundsError(f"rows are different, and below {len(self)}")
        outcomes = numpy.zeros(len(self), completion_dtype())
        numbers, completions = numpy.zeros(len(wanted), "u8"), numpy.zeros(len(wanted), completion_dtype())
        sent = done = 0
        wait = queue.timeout if timeout is None else timeout
        try:
            while done < len(wanted):
                sent += self._submit(queue, wanted[sent:])
                if sent == done:
                    queue.wait_for_room(wait)  # others have filled the queue
                    continue
                count = queue.reap(numbers, completions, timeout=wait)
                outcomes[numbers[:count]] = completions[:count]
                done += count
        except VfioError as error:
            error.add_note(self.namespace._controller.recover_queue(queue))
            self._drain(queue, numbers)
            raise
        found: numpy.ndarray[Any, Any] = outcomes[wanted]
        return found

    def _submit(self, queue: QueuePair, rows: numpy.ndarray[Any, Any]) -> int:
        """Submit as many rows as there is room for; give how many."""
        room = min(queue.num_free, len(rows))
        try:
            queue.submit_rows(self.table, rows, room, keep=self)
        except NvmeQueueFullError:
            return 0  # another thread was quicker; what is in flight makes room
        return room

    def _drain(self, queue: QueuePair, numbers: Any) -> None:
        """Take the outcomes of what was ended; those of nobody else are there."""
        deadline = time.monotonic() + 1
        while queue.reap(numbers) and time.monotonic() < deadline:
            pass

    def close(self) -> None:
        """Free the PRP lists; closing twice does nothing."""
        if self._lists is not None:
            self._lists.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pieces of {self.namespace!r}: {len(self)} of {self.size} bytes>"
