"""Parallel NOR flash that answers the common flash interface's query, with Intel's command set.

Source: JEDEC JESD68.01 (the query), Intel application note 646 (the commands).
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from vfio_user.device.region import Region
from vfio_user.drivers.base import DriverBase
from vfio_user.errors import AlignmentError, BoundsError, DeadlineError, UnsupportedError, VfioError
from vfio_user.platform.device import PlatformDevice

__all__ = ["CfiFlash", "FlashError", "FlashGeometry"]

_QUERY, _READ_ARRAY, _CLEAR_STATUS, _READ_STATUS = 0x98, 0xFF, 0x50, 0x70
_ERASE, _CONFIRM, _PROGRAM = 0x20, 0xD0, 0x40
_READY, _FAILED = 0x80, 0x3A
_INTEL_COMMANDS = (1, 3)
_WIDTH = 4  # bytes of the bus: two chips of 16 bits side by side
_LANES = 0x00010001


class FlashError(VfioError):
    """Report a block that could not be erased or programmed; the chips' status is in the message."""


@dataclass(frozen=True, slots=True)
class FlashGeometry:
    """What the chips say of themselves, put together."""

    size: int
    """Bytes."""
    command_set: int
    """Number of the vendor's command set; 1 is Intel's."""
    blocks: tuple[tuple[int, int], ...]
    """How many blocks follow each other, and bytes of each."""


class CfiFlash(DriverBase):
    """Drive a bank of flash: two chips of 16 bits side by side, as in QEMU's ``virt`` machine.

    Reading is mapped memory; erasing and programming are commands, one word of 32 bits at a time.

    Lifetime:
        See `DriverBase`. Probing asks the chips and leaves them readable.
    Locking:
        One call at a time: while a command runs, the whole bank shows its status instead of its content.
    """

    def __init__(self, platform: PlatformDevice, bank: int = 0) -> None:
        """Take a device, which is not touched yet.

        Args:
            platform: the device.
            bank: index of the region.
        """
        super().__init__(platform)
        self.platform = platform
        """The device that it drives."""
        self._bank = bank

    region: Region
    """The bank."""
    geometry: FlashGeometry
    """What the chips are."""

    def probe(self) -> None:
        """Ask the chips what they are.

        Raises:
            UnsupportedError: nothing answers the query, or with another command set.
        """
        self.region = self.platform.region(self._bank)
        self.geometry = self._ask()
        if self.geometry.command_set not in _INTEL_COMMANDS:
            raise UnsupportedError(f"{self.region.name} has command set {self.geometry.command_set}, not Intel's")

    def remove(self) -> None:
        """Leave the chips readable."""
        self._command(0, _READ_ARRAY)

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of its content; whole words only.

        Raises:
            BoundsError, AlignmentError: outside of the bank, or not whole words.
        """
        self._check(offset, size)
        self._command(0, _READ_ARRAY)
        data = bytearray(size)
        self.region.readinto(offset, data)
        return bytes(data)

    def erase(self, offset: int, *, timeout: float = 30.0) -> None:
        """Erase the block that begins at ``offset``: all its bits become ones.

        Raises:
            AlignmentError: no block begins there.
            FlashError: the chips refused.
            DeadlineError: they did not end within ``timeout`` seconds.
        """
        if offset not in self._block_starts():
            raise AlignmentError(f"{self.region.name}: no block begins at {offset:#x}")
        self._command(offset, _ERASE)
        self._command(offset, _CONFIRM)
        self._finish(offset, "erase the block", timeout)

    def program(self, offset: int, data: bytes, *, timeout: float = 30.0) -> None:
        """Program erased memory; bits can only be taken from ones to zeros. Whole words only.

        Raises:
            BoundsError, AlignmentError: outside of the bank, or not whole words.
            FlashError: the chips refused.
            DeadlineError: they did not end within ``timeout`` seconds for each word.
        """
        self._check(offset, len(data))
        for place, (word,) in enumerate(struct.iter_unpack("<I", data)):
            at = offset + place * _WIDTH
            self._command(at, _PROGRAM)
            self.region.write32(at, word)
            self._finish(at, "program", timeout)

    # -- inside

    def _ask(self) -> FlashGeometry:
        self._command(0x55 * _WIDTH, _QUERY)
        try:
            if bytes(map(self._answer, range(0x10, 0x13))) != b"QRY":
                raise UnsupportedError(f"{self.region.name}: no flash answers the query of the common flash interface")
            # Both chips answer alike, so sizes count twice.
            command_set = self._answer(0x13) | self._answer(0x14) << 8
            size = 2 << self._answer(0x27)
            blocks = []
            for region in range(self._answer(0x2C)):
                low = [self._answer(0x2D + 4 * region + byte) for byte in range(4)]
                blocks.append(((low[0] | low[1] << 8) + 1, 2 * max(128, (low[2] | low[3] << 8) * 256)))
        finally:
            self._command(0, _READ_ARRAY)
        if not 0 < size <= self.region.size or sum(count * each for count, each in blocks) != size:
            raise UnsupportedError(f"{self.region.name}: its chips say {size:#x} bytes in blocks {blocks}")
        return FlashGeometry(size, command_set, tuple(blocks))

    def _answer(self, word: int) -> int:
        return self.region.read32(word * _WIDTH) & 0xFF

    def _command(self, offset: int, command: int) -> None:
        self.region.write32(offset, command * _LANES)

    def _finish(self, offset: int, what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._command(offset, _READ_STATUS)
        try:
            while (status := self.region.read32(offset)) & _READY * _LANES != _READY * _LANES:
                if time.monotonic() > deadline:
                    raise DeadlineError(f"{self.region.name}: to {what} at {offset:#x} took over {timeout:g} s")
            if status & _FAILED * _LANES:
                self._command(offset, _CLEAR_STATUS)
                raise FlashError(f"{self.region.name}: to {what} at {offset:#x} failed, status {status:#010x}")
        finally:
            self._command(0, _READ_ARRAY)

    def _block_starts(self) -> set[int]:
        starts, at = set(), 0
        for count, size in self.geometry.blocks:
            starts |= set(range(at, at + count * size, size))
            at += count * size
        return starts

    def _check(self, offset: int, size: int) -> None:
        if offset % _WIDTH or size % _WIDTH:
            raise AlignmentError(
                f"{self.region.name}: {size} bytes at {offset:#x} are not whole words of {_WIDTH} bytes"
            )
        if size <= 0 or not 0 <= offset <= self.geometry.size - size:
            raise BoundsError(f"{self.region.name}: {size} bytes at {offset:#x} are outside of {self.geometry.size:#x}")
