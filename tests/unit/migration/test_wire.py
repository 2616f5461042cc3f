"""How a state travels: whole, in any pieces, and refused when it is not what was sent."""

from __future__ import annotations

import io
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.device.migration.transfer import send, whole
from vfio_user.device.migration.wire import Packer, reader_of, unpack, writer_of
from vfio_user.errors import ArgumentError, MigrationError


def packed(pieces: list[bytes], tag: str = "") -> bytes:
    packer = Packer()
    return b"".join([packer.head(tag), *(packer.piece(each) for each in pieces), packer.end()])


def unpacked(data: bytes, tag: str = "") -> list[bytes]:
    """Unwrap, as `Migration.load` does; fewer bytes than wanted end it."""
    taken: list[bytes] = []
    read = io.BytesIO(data).read
    steps = unpack(tag, lambda: None, taken.append)
    done, number = False, next(steps)
    while not done:
        done, number = send(steps, whole(read(number), number))
    assert number == sum(map(len, taken))
    return taken


#: An alphabet by name: that of all characters takes hypothesis long to make where it is emulated.
TAGS = st.text("\0 az/é…😀\uffff", max_size=20)


@given(st.lists(st.binary(min_size=1, max_size=300)), TAGS)
def test_there_and_back(pieces: list[bytes], tag: str) -> None:
    assert unpacked(packed(pieces, tag), tag) == pieces


@given(st.lists(st.binary(min_size=1, max_size=40)), st.data())
def test_a_state_that_is_cut_off(pieces: list[bytes], data: st.DataObject) -> None:
    state = packed(pieces)
    with pytest.raises(MigrationError):
        unpacked(state[: data.draw(st.integers(0, len(state) - 1))])


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1), st.data())
def test_a_byte_that_is_changed(pieces: list[bytes], data: st.DataObject) -> None:
    state = bytearray(packed(pieces))
    state[data.draw(st.integers(0, len(state) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MigrationError):
        unpacked(bytes(state))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_state(data: bytes) -> None:
    with pytest.raises(MigrationError):
        unpacked(data)


def test_lengths_that_would_eat_all_memory() -> None:
    head = packed([])[:16]
    with pytest.raises(MigrationError, match="a piece of the state has 4294967295 bytes"):
        unpacked(head + struct.pack(">I", 0xFFFFFFFF))
    with pytest.raises(MigrationError, match="the tag of the state has 2000000000 bytes"):
        unpacked(head[:12] + struct.pack(">I", 2_000_000_000))
    with pytest.raises(ArgumentError, match="the tag has 1025 bytes"):
        Packer().head("x" * 1025)


def test_the_state_of_something_else() -> None:
    with pytest.raises(MigrationError, match="tagged 'mtty-1', and is to be of 'mtty-2'"):
        unpacked(packed([b"x"], "mtty-1"), "mtty-2")


class Slow(io.RawIOBase):
    """A raw file that writes a byte at a time, and then would block."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.got = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int | None:
        if len(self.got) == self.room:
            return None
        self.got += bytes(data)[:1]  # type: ignore[call-overload]
        return 1

    def read(self, size: int = -1) -> bytes | None:
        return None


def test_sinks_and_sources() -> None:
    slow = Slow(3)
    writer_of(slow)(b"abc")
    assert slow.got == b"abc"
    with pytest.raises(BlockingIOError, match="would block"):
        writer_of(slow)(b"d")
    with pytest.raises(BlockingIOError, match="would block"):
        reader_of(slow)(1)
    left, right = socket.socketpair()
    with left, right:
        writer_of(left)(b"abcdef")
        assert reader_of(right)(4) == b"abcd"
        left.close()
        assert reader_of(right)(4) == b"ef"
    assert reader_of(io.BytesIO(b"abc"))(5) == b"abc"
