"""One device's part in a reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.device.health import DeviceHealth
from vfio_user.errors import DeviceGoneError, ResetFailedError, VfioError
from vfio_user.memory import ZapReason
from vfio_user.pci.config import Command
from vfio_user.pci.snapshot import ConfigSnapshot, PowerState

if TYPE_CHECKING:
    from vfio_user.device.reset import ResetListener
    from vfio_user.pci.device import PciDevice

__all__ = ["Member"]

_COMMAND = 0x04
_MASTER = int(Command.MASTER)
_MEMORY = int(Command.MEMORY)
_ACTIVE = int(Command.IO | Command.MEMORY | Command.MASTER)


class Member:
    """The steps of a reset for one device; `ResetTransaction` says when.

    Lifetime:
        One for each device and reset. What a failed reset leaves for the next one is kept by the device.
    Locking:
        From `look` on the transaction holds the device's configuration lock, from `begin` to `settle` its memory lock.
    """

    def __init__(self, pci: PciDevice) -> None:
        self.pci = pci
        self.vdev = pci.vdev
        self.name = pci.name
        self.guard = pci.guard
        self.memory = pci.vdev.memory
        self.failure: Exception | None = None
        """Why the device is not usable after all; `None` when it is."""
        self._driver: ResetListener | None = None
        self._snapshot = ConfigSnapshot(bytes(ConfigSnapshot.SIZE))
        self._begun = False

    @property
    def works(self) -> bool:
        """Tell whether nothing has failed since `begin`."""
        return self._begun and self.failure is None

    # -- its driver

    def prepare_driver(self) -> None:
        """Tell the driver that a reset is about to happen."""
        self._driver = self.pci.driver
        if self._driver is not None:
            self._driver.reset_prepare()

    def finish_driver(self) -> None:
        """Tell the driver that the reset is over, if the device can be used."""
        driver, self._driver = self._driver, None
        if driver is not None and driver is self.pci.driver and self.failure is None:
            driver.reset_done()

    # -- before

    def look(self) -> None:
        """Note the configuration."""
        # After a reset that failed, the configuration from before that one is what the user had.
        self._snapshot = self.pci._before_reset or self._look()

    def begin(self) -> None:
        """Say that it is being reset."""
        self._begun = True
        self.pci._before_reset = self._snapshot
        self.vdev.judge(DeviceHealth.RESETTING)

    def stop_transfers(self) -> None:
        """Switch bus mastering off, before what it may reach is taken away."""
        self._set_command(self._snapshot.command & ~_MASTER)

    def switch_off(self) -> None:
        """Stop interrupts and decoding, and only then leave low power: what wakes up must not answer yet."""
        for irq in self.pci.irqs.delivered:
            irq.quiesce()
        self._set_command(self._snapshot.command & ~_ACTIVE)
        at = self.guard.power_offset
        if at is not None:
            state = int.from_bytes(self._read(at, 2), "little")
            if state & PowerState.MASK:
                self._write(at, (state & ~PowerState.MASK).to_bytes(2, "little"))

    # -- after

    def find_gone(self) -> DeviceGoneError | None:
        """Look whether the device still answers."""
        try:
            self._check(self._look())
        except DeviceGoneError as gone:
            return gone
        except VfioError as error:
            return DeviceGoneError(f"{self.name} can't be read any more: {error}")
        return None

    def restore_config(self) -> None:
        """Put the header back, and COMMAND but for bus mastering.

        Raises:
            DeviceGoneError: it does not answer.
            ResetFailedError: a base address is lost.
        """
        now = self._look()
        self._check(now)
        wrong = self._snapshot.differences(now)
        for offset, value in wrong:
            self._write(offset, value)
        lost = self._snapshot.lost_bars(self._look()) if wrong else []
        if lost:
            raise ResetFailedError(f"BAR {', '.join(map(str, lost))} of {self.name} did not come back after the reset")
        self._set_command(self._snapshot.command & ~_MASTER)

    def revive(self, timeout: float) -> None:
        """Map the memory again; when it is off by the user's choice, it stays away for that reason."""
        if self.memory.window is None:
            return
        if self._snapshot.command & _MEMORY and not self.guard.low_power:
            self.memory.window.revive(self.vdev.fileno(), timeout)
        else:
            self.memory.window.zap(ZapReason.DISABLED)

    def rearm(self) -> list[VfioError]:
        """Arm the interrupts on their eventfds; give what the kernel refused."""
        failures: list[VfioError] = []
        for irq in self.pci.irqs.delivered:
            try:
                irq.rearm()
            except VfioError as error:
                error.add_note(f"{self.name} {irq.label} is not armed; rearm() tries again")
                failures.append(error)
        return failures

    def switch_on(self) -> None:
        """Bus mastering as it was."""
        if self._snapshot.command & _MASTER:
            self._set_command(self._snapshot.command)

    def settle(self) -> None:
        """Say what state the device is in from here on."""
        if self.failure is None:
            self.pci._before_reset = None
            self.vdev.judge(None)
            return
        gone = isinstance(self.failure, DeviceGoneError)
        self.vdev.judge(DeviceHealth.GONE if gone else DeviceHealth.NEEDS_RESET)
        if self.memory.window is not None:
            self.memory.window.zap(ZapReason.GONE if gone else ZapReason.FAILED)

    # -- configuration space, by the ops: the transaction keeps everybody else out

    def _look(self) -> ConfigSnapshot:
        return ConfigSnapshot(self._read(0, ConfigSnapshot.SIZE))

    def _check(self, now: ConfigSnapshot) -> None:
        if not now.answers:
            raise DeviceGoneError(f"{self.name} reads all-ones: it does not answer")

    def _set_command(self, value: int) -> None:
        self._write(_COMMAND, value.to_bytes(2, "little"))

    def _read(self, offset: int, size: int) -> bytes:
        return self.vdev.ops.read(self.vdev, self.guard.start + offset, size)

    def _write(self, offset: int, data: bytes) -> None:
        self.vdev.ops.write(self.vdev, self.guard.start + offset, data)
