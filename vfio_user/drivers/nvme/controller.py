"""An NVMe controller, as users see it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.coalescing import InterruptCoalescing
from vfio_user.drivers.nvme.errors import NvmeNotRunningError, NvmeStatusError, NvmeUnsupportedError
from vfio_user.drivers.nvme.lifecycle import ControllerLife, ControllerState
from vfio_user.drivers.nvme.namespace import Namespace
from vfio_user.drivers.nvme.opcodes import FeatureId
from vfio_user.drivers.nvme.regs import Version
from vfio_user.errors import ArgumentError, BoundsError, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vfio_user.drivers.nvme.admin import AdminCommands
    from vfio_user.drivers.nvme.command import Command
    from vfio_user.drivers.nvme.identify_namespace import IdentifyNamespace
    from vfio_user.drivers.nvme.logs import ErrorEntry, FirmwareSlots, SmartLog
    from vfio_user.drivers.nvme.queue import QueuePair

__all__ = ["NvmeController"]

_ABORT_GRACE = 2.0
_NO_COALESCING = 1 << 16
#: Statuses that say that a feature can't be set: Invalid Field in Command, Feature Not Changeable.
_REFUSALS = {(0, 0x02), (1, 0x0E)}


class NvmeController(ControllerLife):
    """Drive an NVMe controller of any vendor.

    ::

        with vfio_user.open("0000:01:00.0") as pci, NvmeController(pci) as ctrl:
            print(ctrl.identify.model, ctrl.identify.serial)
            data = ctrl.namespaces[0].read(lba=0, num_blocks=8)

    Lifetime:
        See `Driver`. Probing resets the controller, turns bus mastering and MSI-X on, and creates the I/O queues;
        stopping ends what is in flight, shuts the controller down orderly, and turns both off.
    Locking:
        Any thread may call it. A lock of its own serialises resets and the making of queues; I/O does not take it.
    """

    _namespaces: tuple[Namespace, ...] | None = None

    # -- what it is

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """The active namespaces of the NVM command set, ascending; asked for once, and again by `rescan`."""
        found = self._namespaces
        return self.rescan() if found is None else found

    def rescan(self) -> tuple[Namespace, ...]:
        """Ask the controller for its namespaces again."""
        found: list[Namespace] = []
        for nsid in self.active_namespaces():
            descriptors = None
            if self.version >= Version(1, 3):
                descriptors = self.admin_commands.namespace_descriptors(nsid)
            if descriptors is None or descriptors.command_set in (None, 0):
                found.append(Namespace(self, nsid, self.identify_namespace(nsid), descriptors))
        self._namespaces = tuple(found)
        return self._namespaces

    def active_namespaces(self) -> list[int]:
        """Ask for the ids of the active namespaces, ascending."""
        if self.version < Version(1, 1):
            return list(range(1, self.identify.num_namespaces + 1))
        return self._admin().active_namespaces()

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Ask what a namespace is."""
        return self._admin().identify_namespace(nsid)

    # -- logs and features

    def smart(self) -> SmartLog:
        """Read the controller's health (log page 02h)."""
        return self._admin().smart()

    def error_log(self) -> list[ErrorEntry]:
        """Read the errors that the controller remembers, newest first (log page 01h)."""
        return self._admin().error_log(self.identify.error_log_entries)

    def firmware_slots(self) -> FirmwareSlots:
        """Read which firmware is in which slot (log page 03h)."""
        return self._admin().firmware_slots()

    def get_feature(self, feature: int, *, nsid: int = 0) -> int:
        """Read the current value of a feature; see `FeatureId`."""
        return self._admin().get_feature(feature, nsid)

    def set_feature(self, feature: int, value: int, *, nsid: int = 0) -> int:
        """Set a feature; give dword 0 of the completion."""
        return self._admin().set_feature(feature, value, nsid)

    # -- interrupts

    def interrupt_coalescing(self) -> InterruptCoalescing:
        """Ask how the controller gathers completions before it interrupts (feature 08h)."""
        return InterruptCoalescing.from_int(self._admin().get_feature(FeatureId.INTERRUPT_COALESCING))

    def set_interrupt_coalescing(self, threshold: int, delay: float) -> None:
        """Have the controller gather completions of each I/O queue's vector before it interrupts; kept over resets.

        Args:
            threshold: completions that end the gathering, 1 to 256.
            delay: longest delay for that, seconds, up to 0.0255; 0 gathers nothing. Rounded up to 100 µs.

        Raises:
            BoundsError: a number does not fit.
            NvmeUnsupportedError: the controller does not let it be changed.
        """
        self._set(FeatureId.INTERRUPT_COALESCING, 0, InterruptCoalescing(threshold, delay).to_int())

    def vector_coalescing(self, vector: int) -> bool:
        """Ask whether coalescing applies to a vector (feature 09h); never to that of the admin queue."""
        value = self._admin().get_feature(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, which=self._vector(vector))
        return not value & _NO_COALESCING

    def set_vector_coalescing(self, vector: int, enable: bool) -> None:
        """Choose whether coalescing applies to a vector of an I/O queue; kept over resets.

        Raises:
            BoundsError: there is no such vector.
            NvmeUnsupportedError: the controller does not let it be changed.
        """
        value = self._vector(vector) | (0 if enable else _NO_COALESCING)
        self._set(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, vector, value)

    def _vector(self, number: int) -> int:
        used = sorted({0, *(queue.vector.number for queue in self.io_queues if queue.vector is not None)})
        if number not in used:
            raise BoundsError(f"vector {number} is that of no queue of {self.pci.name}; there are {used}")
        return number

    def _set(self, feature: FeatureId, which: int, value: int) -> None:
        """Set a feature, now and after each reset."""
        with self._lock:
            try:
                self._admin().set_feature(feature, value)
            except NvmeStatusError as error:
                if (error.sct, error.sc) not in _REFUSALS:
                    raise
                what = feature.name.lower().replace("_", " ")
                raise NvmeUnsupportedError(
                    f"{self.pci.name} does not let its {what} be changed ({error.status}); gather interrupts on this "
                    "side, by an IrqPoller with an interval"
                ) from error
            self._settings[feature, which] = value

    # -- queues

    @property
    def io_queues(self) -> tuple[QueuePair, ...]:
        """The I/O queues, ordered by number."""
        return self._queues.io if self.state is not ControllerState.STOPPED else ()

    def default_queue(self) -> QueuePair:
        """Give the I/O queue of this thread: threads take turns in choosing one, and keep to it.

        Raises:
            NvmeNotRunningError: there is none.
        """
        queue = self._queues.of_thread() if self.state is not ControllerState.STOPPED else None
        if queue is None:
            raise NvmeNotRunningError(
                f"{self!r} has no I/O queue; start it, and ask for some by io_queues= or create_io_queue()"
            )
        return queue

    def create_io_queue(self, *, entries: int | None = None, interrupts: bool | None = None) -> QueuePair:
        """Create one more I/O queue pair.

        Args:
            entries: 2 to what CAP.MQES allows; by default as given for the controller.
            interrupts: with an MSI-X vector of its own, or polled; by default as given for the controller.

        Raises:
            NvmeUnsupportedError: the controller has no queue left.
            UnsupportedError: no vector left, or this kernel can't add one to those that are enabled.
        """
        with self._lock:
            self._require_running()
            vector = None
            if self._interrupts if interrupts is None else interrupts:
                vector = self.pci.irqs.msix.add(self._queues.free_id(self._granted))
            try:
                return self._create_io_queue(entries or self._io_entries, vector)
            except BaseException:
                if vector is not None:
                    self.pci.irqs.msix.remove(vector.number)
                raise

    def delete_io_queue(self, queue: QueuePair) -> None:
        """Delete an I/O queue pair; what is in flight on it ends with an error.

        Raises:
            ArgumentError: it is no I/O queue of this controller.
        """
        with self._lock:
            self._require_running()
            if queue not in self._queues.io:
                raise ArgumentError(f"{queue!r} is no I/O queue of {self!r}")
            reason = "its queue was deleted"
            queue._stop(reason)
            self.admin_commands.delete_pair(queue.qid)
            queue._abort_all(reason)
            self._queues.drop(queue)
            if queue.vector is not None:
                self._settings.pop((FeatureId.INTERRUPT_VECTOR_CONFIGURATION, queue.vector.number), None)
                self.pci.irqs.msix.remove(queue.vector.number)

    # -- trouble

    def abort(self, command: Command) -> bool:
        """Ask the controller to end a command early; tell whether it says that it did.

        Either way the command's own completion still comes, and tells what became of it.
        """
        return self._admin().abort(command.queue.qid, command.command_id)

    def recover(self, commands: Sequence[Command]) -> str:
        """End commands that the controller does not complete: abort them, else `reset`; tell what was done."""
        ids = [(command.queue.qid, command.command_id) for command in commands if not command.done()]

        def wait(deadline: float) -> None:
            for command in commands:
                command.queue.wait([command], max(0.0, deadline - time.monotonic()))

        return self._recover(ids, wait)

    def recover_queue(self, queue: QueuePair) -> str:
        """End everything that is in flight on a queue, as `recover` does; arrays come out of `reap` then."""
        ids = [(queue.qid, command_id) for command_id in queue._rings.flying()]
        return self._recover(ids, queue._wait_idle)

    def _recover(self, ids: Sequence[tuple[int, int]], wait: Callable[[float], None]) -> str:
        deadline = time.monotonic() + _ABORT_GRACE
        try:
            for qid, command_id in ids:
                self.admin_commands.abort(qid, command_id, timeout=max(0.0, deadline - time.monotonic()))
            wait(deadline)
            return "The commands were aborted."
        except VfioError:
            pass  # it does not even answer to that
        try:
            self.reset()
        except VfioError as exc:
            return f"The controller was reset for that, and did not come back: {exc}"
        return "The controller was reset for that, and works again."

    # -- inside

    def _admin(self) -> AdminCommands:
        self._require_running()
        return self.admin_commands
