"""The transaction behind every reset, of one function or of a whole device set."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vfio_user.device.memory import locked, take_away
from vfio_user.errors import (
    BusyError,
    DeviceGoneError,
    NotOwnedError,
    NotRestoredError,
    ResetBlockedError,
    ResetFailedError,
    UnsupportedError,
    VfioError,
    VfioIoctlError,
)
from vfio_user.kernel import log
from vfio_user.memory import ZapReason
from vfio_user.pci.member import Member
from vfio_user.pci.report import RESET_PHASE, PhaseClock, ResetReport

if TYPE_CHECKING:
    from vfio_user.pci.device import PciDevice

__all__ = ["ResetTransaction"]

_KERNEL_PATIENCE = 2.0
"""Seconds that the kernel may say that it is busy."""
_REVIVE_TIMEOUT = 10.0
# With these the kernel has not touched the device.
_REFUSALS = frozenset(
    {errno.EINVAL, errno.ENODEV, errno.EPERM, errno.EACCES, errno.EBADF, errno.EFAULT, errno.ENOMEM, errno.ENOSPC}
)


class ResetTransaction:
    """Reset devices so that everything which this process has of them survives.

    In this order: drivers' ``reset_prepare``; configuration and memory locks; memory taken from peers (bus mastering
    goes off before that) and from this process; interrupts off, decoding and bus mastering off, power state D0; the
    reset; configuration put back; interrupts armed on the same eventfds; memory given back at the same addresses, and
    to peers at the same IOVAs; locks released in reverse; drivers' ``reset_done``.

    How it ends:

    * Done. What did not come back (a driver's hook raised, a peer's mapping, an interrupt) is told by a
      `NotRestoredError`; everything else works. A driver can't veto a reset: it is what puts a device right that does
      not stop.
    * Refused: a lock is busy, or the kernel says no before it begins. Everything is put back, drivers are told by
      ``reset_done``, and the error says why.
    * Failed (`ResetFailedError`, `DeviceGoneError`): devices stay switched off, their memory stays away, and
      ``vdev.health`` says so. Drivers are told by ``reset_done`` of the next reset that succeeds, which puts the
      configuration back that was there before the first.

    Lifetime:
        One for each reset.
    Locking:
        The caller holds the device set's lock. Hooks are called with no other lock held.
    """

    def __init__(
        self,
        kind: str,
        devices: Sequence[PciDevice],
        act: Callable[[], None],
        clock: PhaseClock,
        deadline: float,
    ) -> None:
        """Prepare a reset.

        Args:
            kind: what it is, for the report.
            devices: those that are open here and affected.
            act: asks the kernel.
            clock: takes the time of the phases.
            deadline: of the locks, by `time.monotonic`.
        """
        self._kind = kind
        self._members = [Member(each) for each in sorted(devices, key=lambda each: each.name)]
        self._act = act
        self._clock = clock
        self._deadline = deadline
        self._attempts = 0
        self._troubles: list[Exception] = []

    def run(self) -> ResetReport:
        """Do it.

        Raises:
            MemoryLockBusyError: a reader did not leave in time; names device and thread.
            BusyError: the configuration is being changed by somebody, or the kernel stayed busy.
            ResetFailedError, DeviceGoneError, NotRestoredError: see the class.
            VfioIoctlError: the kernel refused.
        """
        with ExitStack() as users:
            for member in self._members:
                users.enter_context(member.vdev.user())
            try:
                self._prepare_drivers()
                with ExitStack() as locks:
                    with self._clock.phase("locks"):
                        self._lock(locks)
                    self._reset_locked()
            except BaseException as error:
                self._finish_drivers()
                for trouble in self._troubles:
                    error.add_note(f"also: {type(trouble).__name__}: {trouble}")
                raise
            self._finish_drivers()
        for member in self._members:
            member.pci.resets += 1
        report = ResetReport(self._kind, tuple(each.name for each in self._members), self._clock.phases, self._attempts)
        log.info("reset", "%s of %s: %.1f ms", self._kind, ", ".join(report.devices), report.seconds * 1e3)
        if self._troubles:
            raise NotRestoredError(f"the {self._kind} was done, but not all came back after it", self._troubles)
        return report

    # -- drivers

    def _prepare_drivers(self) -> None:
        with self._clock.phase("drivers: reset_prepare"):
            for member in self._members:
                self._try(member.prepare_driver)

    def _finish_drivers(self) -> None:
        with self._clock.phase("drivers: reset_done"):
            for member in reversed(self._members):
                self._try(member.finish_driver)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._troubles.append(error)

    # -- locks

    def _lock(self, locks: ExitStack) -> None:
        for member in self._members:
            locks.enter_context(member.guard.through(self._remaining()))
        for member in self._members:
            member.look()
        locks.enter_context(locked([each.memory for each in self._members], self._remaining()))

    @property
    def _peers(self) -> bool:
        return any(each.memory.peers for each in self._members)

    def _remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    # -- under the locks

    def _reset_locked(self) -> None:
        asked = False
        try:
            self._take()
            with self._clock.phase(RESET_PHASE):
                asked = True
                self._ask()
        except Exception as error:
            if asked and not _refused(error):
                self._give_up(error)
            self._give_back()
            self._note_failures(error)
            raise
        except BaseException as error:
            # Interrupted, before or after: the kernel's part is done as a whole or not at all.
            self._give_back()
            self._note_failures(error)
            raise
        self._give_back()
        self._raise_failures()

    def _take(self) -> None:
        """Take away what the reset is not to meet.

        The memory goes first: an accessor waits for who has the lock, but is refused at once when the memory is away.
        """
        with self._clock.phase("memory taken away"):
            for member in self._members:
                member.begin()
            if self._peers:
                for member in self._members:
                    member.stop_transfers()
            take_away([each.memory for each in self._members], ZapReason.RESET)
        with self._clock.phase("interrupts and decoding off, D0"):
            for member in self._members:
                member.switch_off()

    def _ask(self) -> None:
        """Ask the kernel, again while it says that it is busy: somebody else uses a lock of its own."""
        patience, pause = time.monotonic() + _KERNEL_PATIENCE, 0.5e-3
        while True:
            self._attempts += 1
            try:
                self._act()
                return
            except VfioIoctlError as error:
                if error.errno not in (errno.EAGAIN, errno.EBUSY):
                    raise
                if time.monotonic() > patience:
                    raise BusyError(
                        f"the kernel was busy with the devices for {_KERNEL_PATIENCE:g} s, {self._attempts} times: "
                        f"another process reads, writes or resets one of them ({error})"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 50e-3)

    def _give_back(self) -> None:
        """Put back what `_take` took; failures are the members' to keep. The memory comes last, as it went first."""
        with self._clock.phase("configuration put back"):
            self._each(Member.restore_config)
        with self._clock.phase("interrupts on"):
            for member in self._members:
                if member.works:
                    self._troubles.extend(member.rearm())
            if not self._peers:
                self._each(Member.switch_on)
        with self._clock.phase("memory given back"):
            self._each(lambda member: member.revive(_REVIVE_TIMEOUT))
        if self._peers:
            with self._clock.phase("memory given back to peers"):
                for member in self._members:
                    if member.works and member.memory.live:
                        self._troubles.extend(member.memory.resume_peers())
                self._each(Member.switch_on)
        for member in self._members:
            member.settle()

    def _each(self, step: Callable[[Member], None]) -> None:
        for member in self._members:
            if member.works:
                try:
                    step(member)
                except Exception as error:
                    member.failure = error

    # -- how it ends

    def _give_up(self, error: Exception) -> None:
        for member in self._members:
            member.failure = member.find_gone() or error
            member.settle()
        names = ", ".join(each.name for each in self._members)
        gone = [each.failure for each in self._members if isinstance(each.failure, DeviceGoneError)]
        if len(gone) == len(self._members):
            raise DeviceGoneError(f"{names}: does not answer after the {self._kind} ({error})") from error
        raise ResetFailedError(
            f"the {self._kind} of {names} failed ({error}): they are switched off, and need another reset",
            [each.name for each in self._members],
        ) from error

    def _raise_failures(self) -> None:
        failed = [each for each in self._members if each.failure is not None]
        if not failed:
            return
        first = failed[0].failure
        assert first is not None
        what = "; ".join(f"{each.name}: {each.failure}" for each in failed)
        if all(isinstance(each.failure, DeviceGoneError) for each in failed):
            raise DeviceGoneError(f"after the {self._kind}: {what}") from first
        raise ResetFailedError(f"after the {self._kind}: {what}", [each.name for each in failed]) from first

    def _note_failures(self, error: BaseException) -> None:
        for member in self._members:
            if member.failure is not None:
                error.add_note(f"{member.name} could not be put back as it was: {member.failure}")


def _refused(error: Exception) -> bool:
    """Tell whether the kernel said no before it touched a device."""
    if isinstance(error, VfioIoctlError):
        return error.errno in _REFUSALS
    return isinstance(error, UnsupportedError | BusyError | NotOwnedError | ResetBlockedError) and isinstance(
        error, VfioError
    )
