"""How a device's state travels: in pieces with their lengths, a total and a checksum, so that its end is no guess.

::

    8 bytes   "VFUSTATE"
    u32       version of this format, 1
    u32       length of the tag
    ...       the tag: what kind of device it is, in the words of whoever saves and loads
    u32       length of a piece, at least 1, then the piece; again and again
    u32       0, then u64: sum of the lengths, u32: CRC-32 of all pieces

All numbers are big-endian.
"""

from __future__ import annotations

import io
import socket
import struct
import zlib
from collections.abc import Callable, Generator
from typing import Protocol

from vfio_user.errors import ArgumentError, MigrationError

__all__ = ["PIECE", "Packer", "Sink", "Source", "reader_of", "unpack", "writer_of"]

PIECE = 1 << 20
"""Bytes that are read from a device at a time."""
_LONGEST = 1 << 26
_LONGEST_TAG = 1 << 10
_HEAD = struct.Struct(">8sII")
_LENGTH = struct.Struct(">I")
_END = struct.Struct(">QI")
_MAGIC, _VERSION = b"VFUSTATE", 1


class Sink(Protocol):
    """What can be written to: a file, a pipe, a buffer. Sockets are taken too."""

    def write(self, data: bytes, /) -> int | None:
        """Write bytes; give how many, or `None` for all."""


class Source(Protocol):
    """What can be read from: a file, a pipe, a buffer. Sockets are taken too."""

    def read(self, size: int, /) -> bytes | None:
        """Read up to so many bytes; none at the end."""


class Packer:
    """Wrap pieces of a device's state for their way.

    Lifetime:
        One for each state.
    Locking:
        One thread at a time.
    """

    def __init__(self) -> None:
        self.total = 0
        """Bytes so far, without the wrapping."""
        self._sum = 0

    def head(self, tag: str) -> bytes:
        """Give what comes first.

        Raises:
            ArgumentError: the tag is too long.
        """
        text = tag.encode()
        if len(text) > _LONGEST_TAG:
            raise ArgumentError(f"the tag has {len(text)} bytes, and may have {_LONGEST_TAG}")
        return _HEAD.pack(_MAGIC, _VERSION, len(text)) + text

    def piece(self, data: bytes) -> bytes:
        """Wrap a piece, of at least a byte."""
        self.total += len(data)
        self._sum = zlib.crc32(data, self._sum)
        return _LENGTH.pack(len(data)) + data

    def end(self) -> bytes:
        """Give what comes last."""
        return _LENGTH.pack(0) + _END.pack(self.total, self._sum)


def unpack(tag: str, begin: Callable[[], None], take: Callable[[bytes], object]) -> Generator[int, bytes, int]:
    """Unwrap a state: yields how many bytes it wants next, and is sent exactly those.

    Args:
        tag: what kind of device it is to be of.
        begin: called once the head is right.
        take: is given each piece.

    Returns:
        How many bytes the state has.

    Raises:
        MigrationError: these are not the bytes of a state, not of this kind of device, or not all of them.
    """
    magic, version, length = _HEAD.unpack((yield _HEAD.size))
    if magic != _MAGIC or version != _VERSION:
        raise MigrationError(f"this is no state that was saved by this version: it begins with {magic!r}, {version}")
    if length > _LONGEST_TAG:
        raise MigrationError(f"the tag of the state has {length} bytes, and may have {_LONGEST_TAG}")
    found = (yield length) if length else b""
    if found != tag.encode():
        raise MigrationError(f"the state is tagged {found.decode(errors='replace')!r}, and is to be of {tag!r}")
    begin()
    packer = Packer()
    while True:
        (length,) = _LENGTH.unpack((yield _LENGTH.size))
        if length == 0:
            break
        if length > _LONGEST:
            raise MigrationError(f"a piece of the state has {length} bytes, and may have {_LONGEST}")
        piece = yield length
        packer.piece(piece)
        take(piece)
    end = yield _END.size
    if _LENGTH.pack(0) + end != packer.end():
        total, _ = _END.unpack(end)
        raise MigrationError(f"the state was damaged on its way: {packer.total} bytes came, {total} were sent")
    return packer.total


def writer_of(sink: Sink | socket.socket) -> Callable[[bytes], None]:
    """Give a function that writes all of what it is given."""
    if isinstance(sink, socket.socket):
        return sink.sendall

    def write(data: bytes) -> None:
        left = memoryview(data)
        while left:
            done = sink.write(bytes(left))
            if done is None and isinstance(sink, io.RawIOBase):
                raise BlockingIOError("the file to write to is non-blocking, and would block")
            left = left[len(left) if done is None else done :]

    return write


def reader_of(source: Source | socket.socket) -> Callable[[int], bytes]:
    """Give a function that reads exactly so many bytes, or fewer at the end."""
    read = source.recv if isinstance(source, socket.socket) else source.read

    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = read(min(size - len(data), PIECE))
            if piece is None:
                raise BlockingIOError("the file to read from is non-blocking, and would block")
            if not piece:
                break
            data += piece
        return bytes(data)

    return exactly
