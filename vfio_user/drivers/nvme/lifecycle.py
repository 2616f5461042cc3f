"""The life of an NVMe controller: probe, removal, resets (NVMe Base 2.0, 3.5 to 3.7)."""

from __future__ import annotations

import contextlib
import enum
import threading
from typing import TYPE_CHECKING

from vfio_user.addresses import PciId
from vfio_user.drivers.base import Driver
from vfio_user.drivers.nvme import commands
from vfio_user.drivers.nvme.admin import AdminCommands
from vfio_user.drivers.nvme.control import ControllerRegisters
from vfio_user.drivers.nvme.errors import NvmeNotRunningError
from vfio_user.drivers.nvme.opcodes import FeatureId
from vfio_user.drivers.nvme.queues import QueueSet
from vfio_user.drivers.nvme.registers import NvmeRegisters
from vfio_user.errors import ArgumentError, BoundsError, ClosedError, VfioError, ZappedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vfio_user.device.vector import IrqVector
    from vfio_user.drivers.nvme.identify_controller import IdentifyController
    from vfio_user.drivers.nvme.queue import QueuePair
    from vfio_user.drivers.nvme.regs import Version
    from vfio_user.iommu.pool import DmaPool
    from vfio_user.pci.device import PciDevice

__all__ = ["ControllerLife", "ControllerState"]

_ADMIN_TRANSFER = 64 << 10
_MAX_TRANSFER = 2 << 20  # keeps the PRP list of a command within a page
_BOUNCE_SIZE = 1 << 20
_SPARE_QUEUES = 16
_SHUTDOWN_TIMEOUT = 5.0  # where Identify says nothing
_FENCE_TIMEOUT = 0.25


class ControllerState(enum.Enum):
    """What a controller is doing."""

    STOPPED = "stopped"
    """Not probed yet, or removed."""
    RUNNING = "running"
    """It takes commands."""
    RESETTING = "resetting"
    """Between `NvmeController.reset_prepare` and `NvmeController.reset_done`."""
    FAILED = "failed"
    """It did not come back from a reset; another one may help."""


class ControllerLife(Driver):
    """Brings a controller up, resets it and shuts it down; `NvmeController` adds what users do with it.

    Lifetime:
        See `Driver`.
    Locking:
        One lock serialises probing, removal, resets and the making of queues. `reset_prepare` first ends what is in
        flight without it, so that nobody waits for a command while holding it.
    """

    match = (PciId(class_code=0x010802),)
    register_maps = (NvmeRegisters,)

    def __init__(
        self,
        pci: PciDevice,
        *,
        admin_entries: int = 32,
        io_queues: int = 1,
        io_entries: int = 64,
        interrupts: bool = True,
        adaptive: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Take a device; nothing is touched before `start`, or the ``with`` block.

        Args:
            pci: the device, class 01 08 02.
            admin_entries: entries of the admin queue, 2 to 4096.
            io_queues: I/O queue pairs to create, from 0 on; `create_io_queue` makes more.
            io_entries: entries of each, 2 to 65536; one less can be in flight.
            interrupts: an MSI-X vector for each queue; without, waiting polls.
            adaptive: with interrupts, poll first for about as long as commands have lately taken, if that is short.
            timeout: default deadline of a command, seconds.

        Raises:
            UnsupportedError: the device is no NVMe controller.
            BoundsError: a number is outside of what any controller takes.
        """
        super().__init__(pci)
        for what, value, least, most in (
            ("admin_entries", admin_entries, 2, 4096),
            ("io_queues", io_queues, 0, 65535),
            ("io_entries", io_entries, 2, 65536),
        ):
            if not least <= value <= most:
                raise BoundsError(f"{what} is {value}: give {least} to {most}")
        if timeout <= 0:
            raise ArgumentError(f"timeout {timeout} is not positive; give seconds")
        self._admin_entries = admin_entries
        self._num_io_queues = io_queues
        self._io_entries = io_entries
        self._interrupts = interrupts
        self._adaptive = adaptive
        self._timeout = timeout
        self._lock = threading.RLock()
        # What was set by methods of ours, to be set again after a reset: values of dword 11.
        self._settings: dict[tuple[FeatureId, int], int] = {}
        self._state = ControllerState.STOPPED

    # -- hooks of Driver

    def probe(self) -> None:
        """Bring the controller up: reset it, enable it, identify it, create the I/O queues.

        Raises:
            NvmeUnsupportedError: it lacks the NVM command set, or enough queues.
            UnsupportedError: it has too few MSI-X vectors; pass ``interrupts=False`` to poll.
            NvmeDeadlineError: it did not become ready within CAP.TO.
            NvmeFatalError: it failed while starting.
            DeviceGoneError: it reads as all-ones.
        """
        with self._lock, contextlib.ExitStack() as stack:
            bar = self.pci.bar(0)
            self.registers = ControllerRegisters(bar, f"NVMe controller {self.pci.name}")
            """The controller's registers."""
            vectors: Sequence[IrqVector | None] = (None,) * (1 + self._num_io_queues)
            if self._interrupts:
                vectors = self.pci.irqs.msix.enable(1 + self._num_io_queues)
                stack.callback(self.pci.irqs.msix.disable)
            space = self.pci.address_space
            self._queues = QueueSet(bar, self.registers, space, timeout=self._timeout, adaptive=self._adaptive)
            page = max(4096, self.registers.page_size)
            self.pages: DmaPool = stack.enter_context(space.pool(page, chunk_size=16 * page))
            """Pages of DMA memory for small transfers."""
            self.bounce: DmaPool = stack.enter_context(space.pool(_BOUNCE_SIZE))
            """Large pieces of DMA memory, through which `Namespace.read` and `Namespace.write` copy."""
            stack.callback(self._queues.close)
            self.admin = self._queues.add(0, self._admin_entries, max_transfer=_ADMIN_TRANSFER, vector=vectors[0])
            """The admin queue."""
            self.admin_commands = AdminCommands(self.admin, self.pages)
            """Admin commands, one method each."""
            stack.callback(self._queues.abort_all, "the driver was stopped")
            stack.callback(self._switch_off)
            self.pci.set_master(True)
            self._switch_on()
            self._identify()
            for vector in vectors[1:]:
                self._create_io_queue(self._io_entries, vector)
            self._settings = {}
            self._state = ControllerState.RUNNING
            self._undo = stack.pop_all()

    def remove(self) -> None:
        """Delete the I/O queues, shut the controller down orderly (3.6.1), and give back what `probe` took.

        Raises:
            NvmeDeadlineError: it did not shut down, or not stop, in time; everything is given back nevertheless.
        """
        with self._lock, self._undo:
            was, self._state = self._state, ControllerState.STOPPED
            # Of a device that is gone, taken away or closed there is nothing to shut down.
            with contextlib.suppress(ZappedError, ClosedError):
                if was is ControllerState.RUNNING:
                    self._shut_down()

    def reset_prepare(self) -> None:
        """Stop the controller for a reset of the device; what is in flight ends with `NvmeAbortedError`."""
        reason = "the controller is being reset"
        if not self._probed():
            return
        # Once without the lock, so that whoever holds it and waits for an admin command lets go.
        self._halt(reason)
        with self._lock:
            if self._probed():
                self._state = ControllerState.RESETTING
                self._halt(reason)

    def reset_done(self) -> None:
        """Bring the controller up again after a reset, with the same queues and vectors.

        Raises:
            NvmeError: it did not come back; it is `ControllerState.FAILED` then.
        """
        with self._lock:
            if self._state is not ControllerState.RESETTING:
                return
            self._state = ControllerState.FAILED
            try:
                self.pci.set_master(True)
                self._switch_on()
                self._identify()
                for queue in self._queues.io:
                    self._tell_of(queue)
                for (feature, _), value in self._settings.items():
                    self.admin_commands.set_feature(feature, value)
            except BaseException as exc:
                self._halt(f"the controller did not come back from a reset ({exc})")
                raise
            self._state = ControllerState.RUNNING

    # -- what it is

    @property
    def state(self) -> ControllerState:
        """What the controller is doing."""
        return self._state

    @property
    def identify(self) -> IdentifyController:
        """What the controller said of itself when it was brought up."""
        self._require_running()
        return self._identity

    @property
    def version(self) -> Version:
        """Version of the specification that it follows."""
        return self.registers.version

    @property
    def max_transfer(self) -> int:
        """Most bytes of one I/O command; larger transfers are split."""
        self._require_running()
        return self._max_transfer

    # -- trouble

    def reset(self) -> None:
        """Start the controller over: disable, enable, create the queues again (3.7.2).

        What is in flight ends with `NvmeAbortedError`. When the controller does not come back, the whole function
        is reset. Queues, namespaces and vectors stay valid.

        Raises:
            NvmeError: that did not help either; the controller is `ControllerState.FAILED` then.
            VfioError: the function can't be reset.
        """
        self._require_probed()
        self.reset_prepare()
        try:
            self.reset_done()
        except VfioError:
            self._reset_function()

    def _reset_function(self) -> None:
        try:
            self.pci.reset()
        except BaseException:
            with self._lock:
                if self._probed():
                    self._state = ControllerState.FAILED
            raise

    # -- inside

    def _probed(self) -> bool:
        return self._state is not ControllerState.STOPPED

    def _require_probed(self) -> None:
        if not self._probed():
            self._require_running()

    def _require_running(self) -> None:
        if self.state is not ControllerState.RUNNING:
            advice = {
                ControllerState.STOPPED: "use it in a with block, or start() it",
                ControllerState.RESETTING: "wait until the reset is over; if it failed, reset() again",
                ControllerState.FAILED: "reset() it",
                ControllerState.RUNNING: "",
            }[self._state]
            raise NvmeNotRunningError(f"the NVMe controller {self.pci.name} is {self._state.value}; {advice}")

    def _switch_on(self) -> None:
        self.registers.disable()
        self.admin._clear()
        submissions, completions = self.admin.iovas
        self.registers.enable(self._admin_entries, submissions, completions)
        self.admin._start()

    def _identify(self) -> None:
        self._identity = self.admin_commands.identify_controller()
        limit = self._identity.max_transfer(self.registers.page_size) or _MAX_TRANSFER
        self._max_transfer = min(limit, _MAX_TRANSFER)
        self.admin.max_transfer = min(limit, _ADMIN_TRANSFER)
        self._granted = 0
        if self._num_io_queues or self._queues.io:
            self._granted = self.admin_commands.set_num_queues(max(self._num_io_queues, _SPARE_QUEUES))

    def _create_io_queue(self, entries: int, vector: IrqVector | None) -> QueuePair:
        qid = self._queues.free_id(self._granted)
        queue = self._queues.add(qid, entries, max_transfer=self._max_transfer, vector=vector)
        try:
            self._tell_of(queue)
        except BaseException:
            self._queues.drop(queue)
            raise
        return queue

    def _tell_of(self, queue: QueuePair) -> None:
        queue._clear()
        self.admin_commands.create_pair(queue)
        queue._start()

    def _halt(self, reason: str) -> None:
        """Stop the controller, or cut it off from memory, and end what is in flight."""
        for queue in self._queues.io:
            queue._stop(reason)
        self._fence()
        self._queues.stop(reason)
        try:
            self.registers.disable()
        except VfioError:
            # Whatever it still does, it can't reach memory without bus mastering.
            with contextlib.suppress(VfioError):
                self.pci.set_master(False)
        self._queues.abort_all(reason)

    def _fence(self) -> None:
        """Let the controller take in the commands that it was told of before it is stopped.

        Hardware does not mind, but QEMU (seen with 10.0) crashes when CC.EN falls between a doorbell and the
        fetching of its commands. An admin command that was sent later and is answered shows that they are fetched.
        """
        with contextlib.suppress(VfioError):
            self.registers.diagnose()
            self.admin.execute(commands.get_features(FeatureId.NUM_QUEUES), timeout=_FENCE_TIMEOUT)

    def _switch_off(self) -> None:
        """Stop the controller for good; it is cut off from memory in any case."""
        self._queues.stop("the driver was stopped")
        try:
            with contextlib.suppress(ZappedError, ClosedError):
                self.registers.disable()
        finally:
            with contextlib.suppress(ClosedError):
                self.pci.set_master(False)

    def _shut_down(self) -> None:
        timeout = max(_SHUTDOWN_TIMEOUT, self._identity.shutdown_latency_us / 1e6)
        with contextlib.ExitStack() as stack:
            stack.callback(self.registers.shutdown, timeout)  # also when a queue can't be deleted
            for queue in self._queues.io:
                queue._stop("the driver was stopped")
                self.admin_commands.delete_pair(queue.qid)
