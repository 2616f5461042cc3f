"""The admin commands that the driver sends, each with its answer decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.drivers.nvme import commands
from vfio_user.drivers.nvme.identify_controller import IdentifyController
from vfio_user.drivers.nvme.identify_namespace import (
    IdentifyNamespace,
    NamespaceDescriptors,
    parse_namespace_list,
)
from vfio_user.drivers.nvme.layout import IDENTIFY_SIZE
from vfio_user.drivers.nvme.logs import (
    ERROR_ENTRY_SIZE,
    FIRMWARE_LOG_SIZE,
    SMART_LOG_SIZE,
    ErrorEntry,
    FirmwareSlots,
    SmartLog,
    parse_error_log,
)
from vfio_user.drivers.nvme.opcodes import Cns, FeatureId, LogPageId

if TYPE_CHECKING:
    from vfio_user.drivers.nvme.commands import SubmissionEntry
    from vfio_user.drivers.nvme.queue import QueuePair
    from vfio_user.iommu.pool import DmaPool

__all__ = ["AdminCommands"]

_IDS_IN_A_LIST = 1024
_NOT_ABORTED = 1


class AdminCommands:
    """Sends admin commands and waits for their answers.

    Lifetime:
        As long as the controller.
    Locking:
        Any thread may call it; commands of several threads are in flight together.
    """

    def __init__(self, queue: QueuePair, pool: DmaPool) -> None:
        """Use the admin ``queue``, and memory of ``pool``, whose buffers have a page at least, for answers."""
        self._queue = queue
        self._pool = pool

    # -- identify

    def identify_controller(self) -> IdentifyController:
        """Ask what the controller is (CNS 01h)."""
        return IdentifyController.parse(self._identify(Cns.CONTROLLER))

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Ask what a namespace is (CNS 00h)."""
        return IdentifyNamespace.parse(self._identify(Cns.NAMESPACE, nsid))

    def namespace_descriptors(self, nsid: int) -> NamespaceDescriptors:
        """Ask for a namespace's unique ids (CNS 03h)."""
        return NamespaceDescriptors.parse(self._identify(Cns.NAMESPACE_DESCRIPTORS, nsid))

    def active_namespaces(self) -> list[int]:
        """Ask for the ids of all active namespaces, ascending (CNS 02h)."""
        found: list[int] = []
        while True:
            more = parse_namespace_list(self._identify(Cns.ACTIVE_NAMESPACES, found[-1] if found else 0))
            # An id that does not ascend would make this loop endless.
            more = [nsid for nsid in more if not found or nsid > found[-1]]
            found += more
            if len(more) < _IDS_IN_A_LIST:
                return found

    def _identify(self, cns: Cns, nsid: int = 0) -> bytes:
        return self._fetch(commands.identify(cns, nsid=nsid), IDENTIFY_SIZE)

    # -- log pages

    def smart(self, nsid: int = 0xFFFF_FFFF) -> SmartLog:
        """Read SMART / Health Information, of the controller or of one namespace."""
        return SmartLog.parse(self._log_page(LogPageId.SMART, SMART_LOG_SIZE, nsid))

    def error_log(self, entries: int) -> list[ErrorEntry]:
        """Read the newest ``entries`` of Error Information; unused ones are left out."""
        size = min(entries * ERROR_ENTRY_SIZE, self._pool.buffer_size)
        return parse_error_log(self._log_page(LogPageId.ERROR_INFORMATION, size))

    def firmware_slots(self) -> FirmwareSlots:
        """Read Firmware Slot Information."""
        return FirmwareSlots.parse(self._log_page(LogPageId.FIRMWARE_SLOT, FIRMWARE_LOG_SIZE))

    def _log_page(self, page: LogPageId, size: int, nsid: int = 0xFFFF_FFFF) -> bytes:
        return self._fetch(commands.get_log_page(page, size, nsid=nsid), size)

    # -- features

    def get_feature(self, feature: int, nsid: int = 0, which: int = 0) -> int:
        """Read the current value of a feature that fits 32 bits; of several, say ``which``."""
        return self._queue.execute(commands.get_features(feature, nsid=nsid, which=which)).result

    def set_feature(self, feature: int, value: int, nsid: int = 0) -> int:
        """Set a feature that fits 32 bits; give dword 0 of the completion."""
        return self._queue.execute(commands.set_features(feature, value, nsid=nsid)).result

    def set_num_queues(self, wanted: int) -> int:
        """Ask for ``wanted`` I/O queue pairs; give how many the controller grants (5.27.1.5)."""
        result = self.set_feature(FeatureId.NUM_QUEUES, (wanted - 1) << 16 | (wanted - 1))
        return min(result & 0xFFFF, result >> 16) + 1

    # -- queues

    def create_pair(self, queue: QueuePair) -> None:
        """Tell the controller of a queue pair, completions first; if it refuses one, it knows neither."""
        vector = None if queue.vector is None else queue.vector.number
        submissions, completions = queue.iovas
        self._queue.execute(commands.create_completion_queue(queue.qid, queue.entries, prp1=completions, vector=vector))
        try:
            self._queue.execute(
                commands.create_submission_queue(queue.qid, queue.entries, prp1=submissions, cqid=queue.qid)
            )
        except BaseException:
            self._queue.execute(commands.delete_completion_queue(queue.qid))
            raise

    def delete_pair(self, qid: int) -> None:
        """Make the controller forget a queue pair, submissions first; it ends what is in flight there."""
        self._queue.execute(commands.delete_submission_queue(qid))
        self._queue.execute(commands.delete_completion_queue(qid))

    def abort(self, qid: int, command_id: int, *, timeout: float | None = None) -> bool:
        """Ask the controller to abort a command of a queue; tell whether it says that it did (5.1)."""
        entry = commands.abort(qid, command_id)
        return not self._queue.execute(entry, timeout=timeout).result & _NOT_ABORTED

    # -- inside

    def _fetch(self, entry: SubmissionEntry, size: int) -> bytes:
        """Run a command that fills ``size`` bytes, and return a copy of them."""
        buffer = self._pool.take()
        try:
            buffer.view[:size] = bytes(size)
            command = self._queue.submit(entry, buffer.view[:size])
        except BaseException:
            buffer.close()
            raise
        try:
            command.wait()
            return bytes(buffer.view[:size])
        finally:
            # Now, when the command is done; otherwise as soon as the controller has let go of the memory.
            command.add_done_callback(lambda _: buffer.close())
