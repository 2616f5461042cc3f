"""A file of registers that behaves like an 82576's where a test wants it to, and misbehaves elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.drivers.igb import regs
from vfio_user.errors import DeadlineError

__all__ = ["FakeBar"]


class FakeBar:
    """Registers that keep what is written, unless a hook says otherwise."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {regs.STATUS: regs.Status.MASTER_ENABLED | regs.Status.LINK_UP}
        self.written: list[tuple[int, int]] = []
        self.on_write: dict[int, Callable[[int], int | None]] = {
            regs.CTRL: self._control,
            regs.MDIC: lambda value: value | regs.Mdic.READY,
            regs.EERD: lambda value: (0x1000 + (value >> 2)) << 16 | regs.Eerd.DONE,
        }

    def _control(self, value: int) -> int:
        status = self.values[regs.STATUS] & ~regs.Status.MASTER_ENABLED
        enabled = 0 if value & regs.Control.MASTER_DISABLE else int(regs.Status.MASTER_ENABLED)
        self.values[regs.STATUS] = status | enabled
        return value & ~regs.Control.RESET

    def read32(self, offset: int) -> int:
        return self.values.get(offset, 0)

    def write32(self, offset: int, value: int) -> None:
        assert 0 <= value < 1 << 32
        self.written.append((offset, value))
        hook = self.on_write.get(offset)
        kept = value if hook is None else hook(value)
        if kept is not None:
            self.values[offset] = kept

    def poll_until(self, offset: int, mask: int, equals: int, timeout: float) -> int:
        value = self.read32(offset)
        if value & mask != equals:
            raise DeadlineError(f"{offset:#x} is {value:#x}")
        return value

    def last(self, offset: int) -> int:
        """Give what was written to a register last."""
        return [value for register, value in self.written if register == offset][-1]
