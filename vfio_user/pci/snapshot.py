"""What of a function's configuration is kept over a reset, and its power state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.errors import ResetFailedError
from vfio_user.pci.config import Command

if TYPE_CHECKING:
    from vfio_user.pci.config import ConfigSpace

__all__ = ["ConfigSnapshot", "PowerState", "answers"]

DECODING = int(Command.IO | Command.MEMORY)
_HEADER_SIZE = 0x40
_BARS = tuple(range(0x10, 0x28, 4))
# Offset and width of what users may have set, in the order in which it is written back; COMMAND comes last.
_FIELDS = ((0x0C, 1), (0x0D, 1), *((offset, 4) for offset in _BARS), (0x30, 4), (0x3C, 1))
_CLASS = 0x08


class PowerState:
    """Values of the power state in PMCSR (PCI Power Management 1.2, 3.2.4)."""

    D0 = 0
    MASK = 3
    D3_HOT = 3


def answers(config: ConfigSpace) -> bool:
    """Tell whether a function answers at all: its class code comes from the device, its ids from the kernel's copy."""
    return config.read32(_CLASS) != 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ConfigSnapshot:
    """The standard header before a reset.

    The kernel restores configuration space itself; what is here is to find out whether it did, and to put back what
    the transaction has changed: COMMAND.
    """

    header: bytes
    """The first 64 bytes."""

    @classmethod
    def take(cls, config: ConfigSpace) -> ConfigSnapshot:
        """Read the header."""
        return cls(config.dump(_HEADER_SIZE))

    @property
    def command(self) -> int:
        """The command register."""
        return int.from_bytes(self.header[4:6], "little")

    def restore(self, config: ConfigSpace) -> None:
        """Write back what differs, but COMMAND.

        Raises:
            ResetFailedError: a base address register does not take its value again.
        """
        now = config.dump(_HEADER_SIZE)
        wrong = [field for field in _FIELDS if not self._same(now, field)]
        for offset, width in wrong:
            value = int.from_bytes(self.header[offset : offset + width], "little")
            (config.write8 if width == 1 else config.write32)(offset, value)
        if not wrong:
            return
        after = config.dump(_HEADER_SIZE)
        lost = [offset for offset in _BARS if not self._same(after, (offset, 4))]
        if lost:
            names = ", ".join(f"BAR {(offset - 0x10) // 4}" for offset in lost)
            raise ResetFailedError(f"{names} did not come back after the reset")

    def _same(self, header: bytes, field: tuple[int, int]) -> bool:
        offset, width = field
        return header[offset : offset + width] == self.header[offset : offset + width]
