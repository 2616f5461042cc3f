"""Register verbs for regions that can't be mapped: I/O ports, and memory that the kernel keeps to itself."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Protocol

from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, DeadlineError

__all__ = ["FileRegisters", "Registers"]

_FORMATS = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_LONGEST_NAP = 0.001


class Registers(Protocol):
    """The verbs on registers: little-endian, naturally aligned, one access of exactly that width each."""

    def read8(self, offset: int, /) -> int:
        """Read 8 bits."""

    def read16(self, offset: int, /) -> int:
        """Read 16 bits."""

    def read32(self, offset: int, /) -> int:
        """Read 32 bits."""

    def read64(self, offset: int, /) -> int:
        """Read 64 bits."""

    def write8(self, offset: int, value: int, /) -> None:
        """Write 8 bits."""

    def write16(self, offset: int, value: int, /) -> None:
        """Write 16 bits."""

    def write32(self, offset: int, value: int, /) -> None:
        """Write 32 bits."""

    def write64(self, offset: int, value: int, /) -> None:
        """Write 64 bits."""


class FileRegisters:
    """Registers read and written through the device's file, one system call each.

    The kernel makes one bus access of an aligned width of 1, 2 or 4; it may split 8 into two halves.

    Lifetime:
        Lives as long as its region.
    Locking:
        None needed; the kernel refuses accesses while memory is switched off.
    """

    def __init__(
        self, name: str, size: int, pread: Callable[[int, int], bytes], pwrite: Callable[[int, bytes], None]
    ) -> None:
        self._name = name
        self._size = size
        self._pread = pread
        self._pwrite = pwrite

    def read8(self, offset: int, /) -> int:
        """Read 8 bits."""
        return self._read(offset, 1)

    def read16(self, offset: int, /) -> int:
        """Read 16 bits."""
        return self._read(offset, 2)

    def read32(self, offset: int, /) -> int:
        """Read 32 bits."""
        return self._read(offset, 4)

    def read64(self, offset: int, /) -> int:
        """Read 64 bits."""
        return self._read(offset, 8)

    def write8(self, offset: int, value: int, /) -> None:
        """Write 8 bits."""
        self._write(offset, 1, value)

    def write16(self, offset: int, value: int, /) -> None:
        """Write 16 bits."""
        self._write(offset, 2, value)

    def write32(self, offset: int, value: int, /) -> None:
        """Write 32 bits."""
        self._write(offset, 4, value)

    def write64(self, offset: int, value: int, /) -> None:
        """Write 64 bits."""
        self._write(offset, 8, value)

    def poll(self, offset: int, width: int, mask: int, equals: int, timeout: float) -> int:
        """Read until the masked value equals ``equals``; give the last value.

        Raises:
            ArgumentError: the width is not 1, 2, 4 or 8.
            BoundsError, AlignmentError: the register is outside, or not at a multiple of its width.
            DeadlineError: it did not within ``timeout`` seconds.
        """
        if width not in _FORMATS:
            raise ArgumentError(f"width {width} is not 1, 2, 4 or 8")
        deadline = time.monotonic() + timeout
        nap = 0.0
        while True:
            value = self._read(offset, width)
            if value & mask == equals:
                return value
            if time.monotonic() >= deadline:
                raise DeadlineError(
                    f"{self._name} {offset:#x}: {value:#x} & {mask:#x} is not {equals:#x} after {timeout:g} s"
                )
            time.sleep(nap)
            nap = min(_LONGEST_NAP, nap * 2 + 1e-6)

    def _check(self, offset: int, width: int) -> None:
        if not 0 <= offset <= self._size - width:
            raise BoundsError(f"{self._name}: offset {offset:#x}, width {width} is outside of {self._size:#x} bytes")
        if offset % width:
            raise AlignmentError(f"{self._name}: offset {offset:#x} is not a multiple of the width {width}")

    def _read(self, offset: int, width: int) -> int:
        self._check(offset, width)
        value: int = _FORMATS[width].unpack(self._pread(offset, width))[0]
        return value

    def _write(self, offset: int, width: int, value: int) -> None:
        self._check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise BoundsError(f"{self._name}: value {value:#x} does not fit {8 * width} bits")
        self._pwrite(offset, _FORMATS[width].pack(value))
