"""Arm's real-time clock PL031: seconds, and an alarm.

Source: Arm DDI 0224, chapter 3.
"""

from __future__ import annotations

import time

from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Access
from vfio_user.device.vector import IrqVector
from vfio_user.drivers.base import DriverBase
from vfio_user.errors import BoundsError, DeadlineError, UnsupportedError
from vfio_user.platform.device import AmbaDevice

__all__ = ["Pl031", "Pl031Registers"]

_PART = 0x031
_ALARM = 1


class Pl031Registers(RegisterMap):
    """Registers of the PL031, in region 0; all take 32 bits."""

    source = "Arm DDI 0224, 3.3"

    data = Register(0x00, 32, Access.RO, doc="Seconds now.")
    match = Register(0x04, 32, doc="Seconds at which the alarm goes off.")
    load = Register(0x08, 32, doc="Sets the seconds.")
    control = Register(0x0C, 32, doc="Bit 0 starts the clock.")
    mask = Register(0x10, 32, doc="Bit 0 lets the alarm interrupt.")
    raw_status = Register(0x14, 32, Access.RO, doc="Bit 0: the alarm has gone off.")
    status = Register(0x18, 32, Access.RO, doc="Bit 0: the alarm has gone off, and interrupts.")
    clear = Register(0x1C, 32, Access.WO, doc="Bit 0 ends the alarm.")
    part_low = Register(0xFE0, 32, Access.RO, doc="Part number, bits 7 to 0.")
    part_high = Register(0xFE4, 32, Access.RO, doc="Part number, bits 11 to 8, in bits 3 to 0.")


class Pl031(DriverBase):
    """Drive a PL031: read and set the time, wait for its alarm.

    Its interrupt is a level, which masks itself when it is delivered: the alarm is ended first, then it is unmasked.

    Lifetime:
        See `DriverBase`. Probing turns the alarm off and the interrupt on; removing turns both off. The clock goes on.
    Locking:
        One alarm at a time.
    """

    regs: Pl031Registers
    """Its registers."""
    vector: IrqVector
    """Its interrupt."""

    def __init__(self, amba: AmbaDevice) -> None:
        """Take a device, which is not touched yet."""
        super().__init__(amba)
        self.amba = amba
        """The device that it drives."""

    def probe(self) -> None:
        """Check the part number, end an old alarm, enable the interrupt.

        Raises:
            UnsupportedError: it is no PL031.
        """
        self.regs = Pl031Registers(self.amba.region(0))
        part = self.regs.part_low.read() & 0xFF | (self.regs.part_high.read() & 0xF) << 8
        if part != _PART:
            raise UnsupportedError(f"{self.amba.name} is part {part:#05x}, not a PL031 ({_PART:#05x})")
        self._silence()
        (self.vector,) = self.amba.irq(0).enable(1)

    def remove(self) -> None:
        """Turn alarm and interrupt off."""
        try:
            self._silence()
        finally:
            self.amba.irq(0).disable()

    def reset_done(self) -> None:
        """Forget alarms of the time before."""
        self._silence()
        self.vector.drain()

    @property
    def now(self) -> int:
        """Seconds since 1970, 32 bits."""
        return self.regs.data.read()

    def set(self, seconds: int) -> None:
        """Set the clock.

        Args:
            seconds: since 1970.

        Raises:
            BoundsError: they do not fit 32 bits.
        """
        self.regs.load.write(_seconds(seconds))

    def alarm_at(self, seconds: int) -> None:
        """Set the alarm, without waiting for it; `wait` does that. One that was set before is forgotten.

        Args:
            seconds: since 1970; later than `now`.

        Raises:
            BoundsError: they do not fit 32 bits.
        """
        self._silence()
        self.vector.drain()
        self.regs.match.write(_seconds(seconds))
        self.regs.mask.write(_ALARM)

    def wait(self, timeout: float) -> int:
        """Wait for the alarm's interrupt; give the time then, and be ready for the next alarm.

        Raises:
            DeadlineError: it did not come within ``timeout`` seconds; the alarm stays set.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.vector.wait(max(0.0, deadline - time.monotonic()))
            went_off = self.regs.status.read() & _ALARM
            if went_off:
                self._silence()
            self.amba.irq(0).unmask()  # after the line has gone down: it would fire again
            if went_off:
                return self.now
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.amba.name}: no alarm within {timeout:g} s")

    def _silence(self) -> None:
        self.regs.mask.write(0)
        self.regs.clear.write(_ALARM)


def _seconds(value: int) -> int:
    if not 0 <= value < 1 << 32:
        raise BoundsError(f"{value} seconds do not fit 32 bits")
    return value
