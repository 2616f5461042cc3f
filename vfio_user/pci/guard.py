"""Configuration writes that take a function's memory away, give it back, or reset it.

The kernel zaps its mappings at such a write and answers a touch with SIGBUS; so whoever writes is a writer of the
memory lock here too: memory decoding switched off, power state D3hot, and the bits that start a function-level reset.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.device.health import DeviceHealth
from vfio_user.device.memory import locked
from vfio_user.errors import BusyError, LockOrderError, MalformedReplyError, NotRestoredError
from vfio_user.memory import ZapReason, read_sections
from vfio_user.pci.config import CapabilityId, Command
from vfio_user.pci.snapshot import PowerState

if TYPE_CHECKING:
    from vfio_user.pci.device import PciDevice

__all__ = ["ConfigGuard"]

TIMEOUT = 5.0
"""Seconds that a configuration write waits for readers of the memory, or for a reset that is under way."""

_COMMAND = 0x04
_EXPRESS_HAS_FLR = 1 << 28
_EXPRESS_FLR = 1 << 15
_ADVANCED_HAS_FLR = 0b11  # transactions pending, and function-level reset: the kernel wants both
_ADVANCED_FLR = 1 << 0


class _Effect(enum.Enum):
    NONE = "none"
    OFF = "memory goes away"
    ON = "memory comes back"
    RESET = "the function is reset"


@dataclass(frozen=True, slots=True)
class _Controls:
    """Where the registers are that matter; `None` for those that the function lacks."""

    power: int | None = None
    express: int | None = None
    advanced: int | None = None


class ConfigGuard:
    """Let configuration writes through, one at a time, and take and give back the memory as they say.

    Lifetime:
        One for each PCI device.
    Locking:
        A lock of its own, between the device set's lock and the memory lock, keeps read-modify-write sequences apart
        from each other and from a reset. Never write to configuration space inside of a read section.
    """

    def __init__(self, pci: PciDevice, start: int, size: int) -> None:
        """Guard the configuration space that begins at ``start`` of the device's file."""
        self._pci = pci
        self.start = start
        """Where configuration space begins in the device's file."""
        self._size = size
        self._lock = threading.RLock()
        self._through = 0
        self._found: _Controls | None = None
        self.low_power = False
        """Whether the kernel was told that the function may sleep (`LowPower`): its memory is off meanwhile."""

    # -- for who changes configuration

    @contextmanager
    def alone(self, timeout: float = TIMEOUT) -> Iterator[None]:
        """Keep other writers out in a ``with`` block.

        Raises:
            BusyError: another thread had it for ``timeout`` seconds; most likely it resets the device.
            LockOrderError: this thread would have to wait inside of a read section.
        """
        self._pci.vdev.fileno()  # a forked child is told so, and does not wait for a thread that it does not have
        if not self._lock.acquire(blocking=False):
            if read_sections():
                raise LockOrderError(
                    f"the configuration of {self._pci.name} is being changed: leave access() before waiting for that"
                )
            if not self._lock.acquire(timeout=max(0.0, timeout)):
                raise BusyError(
                    f"another thread changed the configuration of {self._pci.name}, or reset it, for {timeout:g} s"
                )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def through(self, timeout: float) -> Iterator[None]:
        """Be alone, and write without an eye on the memory: for a reset, which takes care of it."""
        with self.alone(timeout):
            before, self._through = self._through, threading.get_ident()
            try:
                yield
            finally:
                self._through = before

    def memory_on(self) -> bool:
        """Tell whether the function answers in memory space: decoding is on, and it neither sleeps nor is in D3."""
        if self.low_power:
            return False
        config, power = self._pci.config, self._controls().power
        state = PowerState.D0 if power is None else config.read16(power) & PowerState.MASK
        return bool(config.command & Command.MEMORY) and state != PowerState.D3_HOT

    @property
    def power_offset(self) -> int | None:
        """Where PMCSR is; `None` for a function without power management."""
        return self._controls().power

    # -- the op

    def write(self, file_offset: int, data: bytes, plain: Callable[[int, bytes], None]) -> None:
        """Write to the device's file; ``plain`` does so without a second thought."""
        offset = file_offset - self.start
        if not 0 <= offset < self._size or self._through == threading.get_ident():
            plain(file_offset, data)
            return
        with self.alone():
            effect = self._effect(offset, data)
            if effect is _Effect.NONE:
                plain(file_offset, data)
            elif effect is not _Effect.RESET:
                self._switch(effect, lambda: plain(file_offset, data))
        if effect is _Effect.RESET:
            # Outside of the guard's lock: the device set's lock comes before it.
            self._pci._reset_by("function reset by configuration", lambda: plain(file_offset, data), TIMEOUT)

    def _switch(self, effect: _Effect, write: Callable[[], None]) -> None:
        memory, vdev = self._pci.vdev.memory, self._pci.vdev
        begin = time.monotonic()
        with locked((memory,), TIMEOUT):
            if effect is _Effect.OFF:
                memory.take_away(ZapReason.DISABLED)
            try:
                write()
            finally:
                # What counts is what the function does now: it may lack D3, or refuse the write.
                failures = []
                if self.memory_on():
                    failures = memory.give_back(vdev.fileno(), TIMEOUT - (time.monotonic() - begin))
        if failures:
            raise NotRestoredError(f"the memory of {vdev.name} is back, but not for all of its peers", failures)

    def _effect(self, offset: int, data: bytes) -> _Effect:
        controls = self._controls()
        if self._starts_reset(controls, offset, data):
            return _Effect.RESET
        touches = [_COMMAND] if controls.power is None else [_COMMAND, controls.power]
        if not any(_overlap(offset, len(data), at, 2) for at in touches):
            return _Effect.NONE
        vdev = self._pci.vdev
        if vdev.memory.window is None or vdev.health in (DeviceHealth.NEEDS_RESET, DeviceHealth.GONE):
            return _Effect.NONE
        on = bool(self._after(_COMMAND, 2, offset, data) & Command.MEMORY)
        if controls.power is not None:
            on = on and self._after(controls.power, 2, offset, data) & PowerState.MASK != PowerState.D3_HOT
        if not on:
            return _Effect.OFF if vdev.memory.live else _Effect.NONE
        return _Effect.NONE if vdev.memory.live and not vdev.memory.refused else _Effect.ON

    def _starts_reset(self, controls: _Controls, offset: int, data: bytes) -> bool:
        config = self._pci.config
        at = controls.express
        if at is not None and _overlap(offset, len(data), at + 8, 2):
            asked = _overlay(b"\0\0", at + 8, offset, data) & _EXPRESS_FLR
            if asked and config.read32(at + 4) & _EXPRESS_HAS_FLR:
                return True
        at = controls.advanced
        if at is not None and _overlap(offset, len(data), at + 4, 1):
            asked = _overlay(b"\0", at + 4, offset, data) & _ADVANCED_FLR
            return bool(asked) and config.read8(at + 3) & _ADVANCED_HAS_FLR == _ADVANCED_HAS_FLR
        return False

    def _after(self, at: int, size: int, offset: int, data: bytes) -> int:
        """What a register would read after the write."""
        before = self._pci.vdev.ops.read(self._pci.vdev, self.start + at, size)
        return _overlay(before, at, offset, data)

    def _controls(self) -> _Controls:
        if self._found is None:
            find = self._pci.config.find
            try:
                power = find(CapabilityId.POWER_MANAGEMENT)
                self._found = _Controls(
                    None if power is None else power + 4,
                    find(CapabilityId.EXPRESS),
                    find(CapabilityId.ADVANCED_FEATURES),
                )
            except MalformedReplyError:
                self._found = _Controls()  # a list that can't be walked has no register that could be found by it
        return self._found


def _overlap(offset: int, size: int, at: int, width: int) -> bool:
    return offset < at + width and at < offset + size


def _overlay(before: bytes, at: int, offset: int, data: bytes) -> int:
    """Value of the register at ``at`` after ``data`` was written at ``offset``."""
    after = bytearray(before)
    for position in range(len(after)):
        if 0 <= at + position - offset < len(data):
            after[position] = data[at + position - offset]
    return int.from_bytes(after, "little")
