"""What network drivers have in common: sizes of frames, errors, and numbered frames for testing a line."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence, Sized
from typing import TypeAlias

from vfio_user.errors import BoundsError, BusyError, MalformedReplyError, VfioError
from vfio_user.iommu.buffer import DmaSlice

__all__ = [
    "BROADCAST",
    "HEADER_SIZE",
    "MIN_FRAME",
    "TEST_TYPE",
    "Frame",
    "FrameSizeError",
    "LinkDownError",
    "NumberedFrames",
    "RingFullError",
    "WrongFrameError",
    "build_frame",
    "check_sizes",
    "format_mac",
]

HEADER_SIZE = 14
"""Bytes of an Ethernet header: destination, source, EtherType."""
MIN_FRAME = 60
"""Bytes of the shortest frame on a line, without its checksum; shorter ones are padded with zeros on their way."""
BROADCAST = b"\xff" * 6
"""The address of everybody."""
TEST_TYPE = 0x88B5
"""EtherType for experiments (IEEE 802, 9.2.3): no stack takes it for its own."""

Frame: TypeAlias = bytes | bytearray | memoryview | DmaSlice
"""What can be sent: bytes are copied, DMA memory is sent from where it is."""

_HEADER = struct.Struct("!6s6sH")
_NUMBER = struct.Struct("!QH")
_NUMBERED = HEADER_SIZE + _NUMBER.size


class FrameSizeError(BoundsError):
    """Report a frame that is too short to have a header, or longer than the port was set up for."""


class LinkDownError(VfioError):
    """Report that the link is down, so that frames would go nowhere."""


class RingFullError(BusyError):
    """Report that there was no room for some frames within the time given.

    Attributes:
        sent: how many of them were handed over before; the others were not touched.
    """

    def __init__(self, message: str, sent: int) -> None:
        super().__init__(message)
        self.sent = sent

    def __reduce__(self) -> tuple[type[RingFullError], tuple[str, int]]:
        return type(self), (str(self), self.sent)


class WrongFrameError(MalformedReplyError):
    """Report a frame whose content is not what its sender wrote."""


def format_mac(address: bytes) -> str:
    """Spell an address: ``"52:54:00:12:34:56"``."""
    return address.hex(":")


def build_frame(destination: bytes, source: bytes, ether_type: int, payload: bytes) -> bytes:
    """Put a frame together; addresses have 6 bytes."""
    return _HEADER.pack(destination, source, ether_type) + payload


def check_sizes(name: str, frames: Sequence[Sized], most: int) -> None:
    """Refuse frames that can't be sent, all before one is.

    Raises:
        FrameSizeError: one is shorter than its header, or longer than ``most`` bytes.
    """
    for number, frame in enumerate(frames):
        size = len(frame)
        if not HEADER_SIZE <= size <= most:
            raise FrameSizeError(
                f"{name}: frame {number} has {size} bytes; {HEADER_SIZE} (its header) to {most} can be sent. "
                "Nothing was sent"
            )


class NumberedFrames:
    """Frames with a number and a content that follows from it, so that a receiver can check every byte.

    Lifetime:
        A value; nothing to close.
    Locking:
        `make` and `check` keep no state.
    """

    def __init__(self, destination: bytes, source: bytes, *, stream: int = 0) -> None:
        """Describe a stream of frames.

        Args:
            destination: address of the receiver, 6 bytes.
            source: address of the sender, 6 bytes.
            stream: tells apart streams on one line, 16 bits.
        """
        self.stream = stream
        """Number of the stream."""
        self._header = _HEADER.pack(destination, source, TEST_TYPE)

    def make(self, number: int, size: int) -> bytes:
        """Make frame ``number`` with ``size`` bytes.

        Raises:
            FrameSizeError: fewer than `MIN_FRAME`.
        """
        if size < MIN_FRAME:
            raise FrameSizeError(f"a numbered frame of {size} bytes would be padded; give {MIN_FRAME} at least")
        return self._header + _NUMBER.pack(number, self.stream) + _content(number, size - _NUMBERED)

    def number_of(self, frame: bytes) -> int | None:
        """Give the number of a frame; `None` when it is not one of this stream."""
        if len(frame) < _NUMBERED or not frame.startswith(self._header):
            return None
        number, stream = _NUMBER.unpack_from(frame, HEADER_SIZE)
        return number if stream == self.stream else None

    def check(self, frames: Iterable[bytes]) -> list[int]:
        """Give the numbers of those frames that are of this stream, in their order.

        Raises:
            WrongFrameError: the content of one of them is wrong.
        """
        numbers = []
        for frame in frames:
            number = self.number_of(frame)
            if number is None:
                continue
            if frame[_NUMBERED:] != _content(number, len(frame) - _NUMBERED):
                raise WrongFrameError(f"frame {number} of stream {self.stream}, {len(frame)} bytes, has a wrong byte")
            numbers.append(number)
        return numbers


def _content(number: int, size: int) -> bytes:
    return random.Random(number << 16 | size).randbytes(size)
