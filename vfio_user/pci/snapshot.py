"""What of a function's configuration is kept over a reset, and its power state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["ConfigSnapshot", "PowerState"]

_BARS = tuple(range(0x10, 0x28, 4))
# Offset and width of what users may have set, in the order in which it is written back; COMMAND comes last.
_FIELDS = ((0x0C, 1), (0x0D, 1), *((offset, 4) for offset in _BARS), (0x30, 4), (0x3C, 1))
_FIRST = _FIELDS[0][0]
_CLASS = slice(0x08, 0x0C)


class PowerState:
    """Values of the power state in PMCSR (PCI Power Management 1.2, 3.2.4)."""

    D0 = 0
    MASK = 3
    D3_HOT = 3


@dataclass(frozen=True, slots=True)
class ConfigSnapshot:
    """The standard header of a function, as it reads at one time.

    The kernel restores configuration space itself after a reset; two of these, from before and after, tell whether it
    did.
    """

    header: bytes
    """The first 64 bytes."""

    SIZE: ClassVar[int] = 0x40
    """How many bytes there are."""

    @property
    def command(self) -> int:
        """The command register."""
        return int.from_bytes(self.header[4:6], "little")

    @property
    def answers(self) -> bool:
        """Whether the function answers at all. Its class code tells: the ids are copies that the kernel keeps."""
        return self.header[_CLASS] != b"\xff\xff\xff\xff"

    def differences(self, after: ConfigSnapshot) -> list[tuple[int, bytes]]:
        """Give offset and bytes of what users may have set and is different ``after``; COMMAND is not among it."""
        if self.header[_FIRST:] == after.header[_FIRST:]:
            return []  # as nearly always: the kernel has restored it
        fields = ((offset, self._field(offset, width), after._field(offset, width)) for offset, width in _FIELDS)
        return [(offset, mine) for offset, mine, other in fields if mine != other]

    def lost_bars(self, after: ConfigSnapshot) -> list[int]:
        """Give the numbers of the base address registers that are different ``after``."""
        return [number for number, at in enumerate(_BARS) if self._field(at, 4) != after._field(at, 4)]

    def _field(self, offset: int, width: int) -> bytes:
        return self.header[offset : offset + width]
