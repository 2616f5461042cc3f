"""All queue pairs of a controller: their memory, their numbers, and what a reset does to them together."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.errors import NvmeUnsupportedError
from vfio_user.drivers.nvme.memory import MemoryFinder, QueueMemory
from vfio_user.drivers.nvme.queue import QueuePair
from vfio_user.drivers.nvme.regs import doorbell_offset
from vfio_user.errors import BoundsError

if TYPE_CHECKING:
    from vfio_user.device.region import Region
    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.nvme.control import ControllerRegisters
    from vfio_user.iommu import AddressSpace, DmaBuffer

__all__ = ["QueueSet"]


class QueueSet:
    """The admin queue and the I/O queues.

    Lifetime:
        As long as the controller is probed. `close` frees the memory of all queues: only when the controller is
        stopped.
    Locking:
        `NvmeController` serialises `add`, `drop` and what restarts queues; the rest may be called at any time.
    """

    def __init__(
        self, bar: Region, registers: ControllerRegisters, space: AddressSpace, *, timeout: float, adaptive: bool
    ) -> None:
        self._bar = bar
        self._registers = registers
        self._space = space
        self._finder = MemoryFinder(space)
        self._timeout = timeout
        self._adaptive = adaptive
        self._thread = threading.local()
        self._turns = itertools.count()
        self._queues: dict[int, QueuePair] = {}
        self._memory: dict[int, DmaBuffer] = {}

    @property
    def io(self) -> tuple[QueuePair, ...]:
        """The I/O queues, ordered by number."""
        return tuple(self._queues[qid] for qid in sorted(self._queues) if qid)

    def of_thread(self) -> QueuePair | None:
        """Give the I/O queue of the calling thread, if there is any: threads take turns, and keep to theirs."""
        queues = self.io
        if not queues:
            return None
        turn: int | None = getattr(self._thread, "turn", None)
        if turn is None:
            turn = self._thread.turn = next(self._turns)
        return queues[turn % len(queues)]

    def free_id(self, most: int) -> int:
        """Give the lowest unused I/O queue number.

        Raises:
            NvmeUnsupportedError: the controller has granted ``most`` I/O queues, and there are that many.
        """
        for qid in range(1, most + 1):
            if qid not in self._queues:
                return qid
        raise NvmeUnsupportedError(f"the controller grants {most} I/O queues, and all are in use: delete one first")

    def add(self, qid: int, entries: int, *, max_transfer: int, vector: IrqVector | None) -> QueuePair:
        """Allocate a queue pair; the controller is not told.

        Raises:
            BoundsError: the controller's queues can't have so many entries.
        """
        capabilities = self._registers.capabilities
        if not 2 <= entries <= capabilities.max_queue_entries:
            raise BoundsError(
                f"a queue of {entries} entries: this controller takes 2 to {capabilities.max_queue_entries}"
            )
        page = self._registers.page_size
        buffer = self._space.alloc(QueueMemory.size(entries, max_transfer, page))
        queue = QueuePair(
            qid,
            entries,
            QueueMemory.carve(buffer, entries, max_transfer, page),
            doorbells=self._bar,
            bell_offsets=(
                doorbell_offset(qid, completion=False, stride=capabilities.doorbell_stride),
                doorbell_offset(qid, completion=True, stride=capabilities.doorbell_stride),
            ),
            finder=self._finder,
            page_size=page,
            max_transfer=max_transfer,
            vector=vector,
            adaptive=self._adaptive,
            timeout=self._timeout,
            diagnose=self._registers.diagnose,
        )
        self._memory[qid] = buffer
        self._queues[qid] = queue
        return queue

    def drop(self, queue: QueuePair) -> None:
        """Free a queue pair that the controller does not know (any more)."""
        del self._queues[queue.qid]
        self._memory.pop(queue.qid).close()

    def stop(self, reason: str) -> None:
        """Refuse further commands on all queues."""
        for queue in tuple(self._queues.values()):
            queue._stop(reason)

    def abort_all(self, reason: str) -> int:
        """End all commands in flight, once the controller is stopped; give their number."""
        return sum(queue._abort_all(reason) for queue in tuple(self._queues.values()))

    def close(self) -> None:
        """Free the memory of all queues; the controller must be stopped.

        Raises:
            ExceptionGroup: the kernel did not confirm some of the unmaps.
        """
        buffers, self._memory = self._memory, {}
        self._queues = {}
        failures: list[Exception] = []
        for buffer in buffers.values():
            try:
                buffer.close()
            except Exception as exc:
                failures.append(exc)
        if failures:
            raise ExceptionGroup("the memory of some queues was not unmapped", failures)
