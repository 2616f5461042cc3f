"""Switching a controller on and off through its registers (NVMe Base 2.0, 3.5 and 3.6)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vfio_user.drivers.nvme import regs
from vfio_user.drivers.nvme.errors import NvmeDeadlineError, NvmeFatalError, NvmeUnsupportedError
from vfio_user.drivers.nvme.registers import NvmeRegisters
from vfio_user.drivers.nvme.regs import Capabilities, ControllerStatus, Version
from vfio_user.errors import DeviceGoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfio_user.device.region import Region

__all__ = ["ControllerRegisters"]

# CAP.TO counts half seconds and may be 0; half a second more costs nothing where the controller is well.
_READY_MARGIN = 0.5
_FIRST_NAP = 20e-6
_LONGEST_NAP = 0.01


class ControllerRegisters:
    """The registers of a controller, and the sequences that its state machine asks for.

    Lifetime:
        As long as the device.
    Locking:
        Reading may be done by any thread. Enabling, disabling and shutting down is serialised by `NvmeController`.
    """

    def __init__(self, bar: Region, name: str) -> None:
        """Read what the controller can do, and check that it can be driven at all.

        Args:
            bar: BAR 0.
            name: of the controller, for messages.

        Raises:
            DeviceGoneError: it reads as all-ones.
            NvmeUnsupportedError: no NVM command set, or no PCIe transport.
        """
        self._regs = NvmeRegisters(bar)
        self._name = name
        cap = self._regs.cap.read()
        if cap == regs.ALL_ONES64:
            raise self._gone()
        self.capabilities: Capabilities = Capabilities.from_int(cap)
        """Register CAP."""
        self.version: Version = Version.from_int(self._regs.vs.read())
        """Register VS."""
        if cap == 0:
            raise NvmeUnsupportedError(
                f"{name} reports no capabilities: a virtual function without resources? Assign it queues first"
            )
        if not self.capabilities.has_nvm_command_set:
            raise NvmeUnsupportedError(
                f"{name} does not support the NVM command set (CAP.CSS {self.capabilities.command_sets:#04x})"
            )

    @property
    def page_size(self) -> int:
        """Memory page size that the driver uses: the smallest that the controller knows, in bytes."""
        return self.capabilities.min_page_size

    @property
    def ready_timeout(self) -> float:
        """Longest time for CSTS.RDY to follow CC.EN, seconds."""
        return self.capabilities.timeout + _READY_MARGIN

    def status(self) -> ControllerStatus:
        """Read CSTS."""
        return ControllerStatus.from_int(self._regs.csts.read())

    def diagnose(self) -> None:
        """Raise if the controller can't answer any more.

        Raises:
            DeviceGoneError: it reads as all-ones.
            NvmeFatalError: CSTS.CFS is set.
        """
        status = self.status()
        if status.gone:
            raise self._gone()
        if status.fatal:
            raise NvmeFatalError(
                f"{self._name} reports a fatal status (CSTS.CFS); NvmeController.reset() brings it back"
            )

    def disable(self) -> None:
        """Clear CC.EN and wait until the controller has stopped: no DMA, no queues (3.5.2).

        Raises:
            NvmeDeadlineError: CSTS.RDY stayed 1.
            DeviceGoneError: it reads as all-ones.
        """
        configuration = self._regs.cc.get()
        if configuration == regs.ALL_ONES32:
            raise self._gone()
        if configuration.en:
            self._regs.cc.write(configuration.replace(en=0, shn=0))
        self._wait("stop (CSTS.RDY = 0)", self.ready_timeout, lambda status: not status.ready)

    def enable(self, entries: int, submissions: int, completions: int) -> None:
        """Name the admin queues, set CC.EN and wait until the controller is ready (3.5.1).

        Args:
            entries: of each admin queue, 2 to 4096.
            submissions: IOVA of the admin submission queue, page aligned.
            completions: IOVA of the admin completion queue, page aligned.

        Raises:
            NvmeDeadlineError: CSTS.RDY stayed 0.
            NvmeFatalError: the controller failed while starting.
            DeviceGoneError: it reads as all-ones.
        """
        selection = self.capabilities.command_set_selection
        assert selection is not None  # the constructor has checked
        self._regs.aqa.write(regs.admin_queue_attributes(entries))
        self._regs.asq.write(submissions)
        self._regs.acq.write(completions)
        self._regs.cc.write(regs.configuration(self.page_size, selection))
        self._wait("start (CSTS.RDY = 1)", self.ready_timeout, lambda status: status.ready, fatal=True)

    def shutdown(self, timeout: float) -> None:
        """Tell the controller that power may go, and wait until it is prepared for that (3.6.1).

        Raises:
            NvmeDeadlineError: CSTS.SHST did not become 10b.
            NvmeFatalError: the controller failed meanwhile.
            DeviceGoneError: it reads as all-ones.
        """
        configuration = self._regs.cc.get()
        if configuration == regs.ALL_ONES32:
            raise self._gone()
        self._regs.cc.write(configuration.replace(shn=0b01))
        self._wait("shut down (CSTS.SHST = 10b)", timeout, lambda status: status.shutdown_complete, fatal=True)

    def _wait(
        self, what: str, timeout: float, reached: Callable[[ControllerStatus], bool], *, fatal: bool = False
    ) -> None:
        deadline = time.monotonic() + timeout
        nap = _FIRST_NAP
        while True:
            late = time.monotonic() >= deadline
            status = self.status()
            if status.gone:
                raise self._gone()
            if reached(status):
                return
            if fatal and status.fatal:
                raise NvmeFatalError(f"{self._name} set CSTS.CFS while it was asked to {what}")
            if late:
                raise NvmeDeadlineError(f"{self._name} did not {what} within {timeout:g} s; it says {status}")
            time.sleep(nap)
            nap = min(nap * 2, _LONGEST_NAP)

    def _gone(self) -> DeviceGoneError:
        return DeviceGoneError(
            f"{self._name} reads as all-ones: it was unplugged, lost power, or its memory decoding is off"
        )
