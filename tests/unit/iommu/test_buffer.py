"""DMA memory as Python sees it: bytes, slices that know their IOVA, arrays."""

from __future__ import annotations

import gc
import os

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.addresses import Iova
from vfio_user.errors import ArgumentError, BoundsError, ClosedError
from vfio_user.iommu import AddressSpace, DmaBuffer, DmaSlice

BASE = 0x10_0000


@pytest.fixture
def buffer(space: AddressSpace) -> DmaBuffer:
    return space.alloc(8192, iova=BASE)


def test_all_of_it(buffer: DmaBuffer) -> None:
    assert (buffer.iova, buffer.size, len(buffer)) == (BASE, 8192, 8192)
    assert bytes(buffer) == bytes(8192)
    assert memoryview(buffer).format == "B"
    assert not memoryview(buffer).readonly
    assert repr(buffer) == "<DmaBuffer 0x100000 size 0x2000 anonymous>"
    buffer.close()
    assert repr(buffer) == "<DmaBuffer 0x100000 size 0x2000 anonymous closed>"


@given(st.slices(64))
def test_slice_is_what_bytes_would_give(key: slice) -> None:
    part = DmaSlice(memoryview(bytearray(range(64))), Iova(BASE))
    if key.step not in (None, 1):
        with pytest.raises(BoundsError, match="the step must be 1"):
            part[key]
        return
    taken = part[key]
    assert bytes(taken) == bytes(range(64))[key]
    if taken.size:
        assert taken.iova == BASE + taken[0]
        assert bytes(taken[1:]) == bytes(taken)[1:]


def test_slice_of_a_slice_shares_the_memory(buffer: DmaBuffer) -> None:
    part = buffer[4096:][16:32]
    part[:] = b"0123456789abcdef"
    part[0] = 0xFF
    assert bytes(buffer[4096 + 16 : 4096 + 18]) == b"\xff1"
    assert (part.iova, part[0], part[-1]) == (BASE + 4096 + 16, 0xFF, ord("f"))
    assert repr(part) == "<DmaSlice 0x101010 size 0x10>"


def test_whatever_has_bytes_can_be_written(buffer: DmaBuffer) -> None:
    buffer[:16] = numpy.arange(4, dtype="<u4")
    assert bytes(buffer[:8]) == b"\0\0\0\0\1\0\0\0"
    buffer[8:12] = buffer[4:8]
    assert buffer[8] == 1
    numpy.frombuffer(memoryview(buffer), dtype="<u4")[0] = 7
    assert buffer[0] == 7


def test_arrays_without_a_copy(buffer: DmaBuffer) -> None:
    assert buffer.array().shape == (8192,)
    assert buffer[:10].array("<u4").shape == (2,)
    ring = buffer.array([("low", "<u4"), ("high", "<u4")], (16, 2))
    ring["high"][1, 1] = 0x01020304
    assert bytes(buffer[28:32]) == b"\4\3\2\1"
    assert buffer.array("<u8", 4).shape == (4,)
    assert buffer[:0].array("<u4").shape == (0,)


@pytest.mark.parametrize("shape", [3, (2, 2), (-1, 2), -2])
def test_shape_that_does_not_fit(buffer: DmaBuffer, shape: int | tuple[int, ...]) -> None:
    with pytest.raises(BoundsError, match=r"shape .* does not fit 8 bytes"):
        buffer[:8].array("<u4", shape)


@pytest.mark.parametrize("index", [8192, -8193])
def test_index_outside(buffer: DmaBuffer, index: int) -> None:
    with pytest.raises(BoundsError, match=f"index {index} is outside of 8192 bytes"):
        buffer[index]
    with pytest.raises(BoundsError, match=f"index {index} is outside of 8192 bytes"):
        buffer[index] = 0


def test_what_can_not_be_written(buffer: DmaBuffer) -> None:
    with pytest.raises(BoundsError, match="3 bytes do not fill a slice of 4"):
        buffer[:4] = b"abc"
    with pytest.raises(BoundsError, match="4 bytes do not fill a slice of 2"):
        buffer[8190:9000] = b"abcd"
    with pytest.raises(BoundsError, match="256 is not a byte"):
        buffer[0] = 256
    with pytest.raises(ArgumentError, match="str can't be written to DMA memory"):
        buffer[:4] = "text"
    with pytest.raises(ArgumentError, match="contiguous"):
        buffer[:4] = memoryview(b"12345678")[::2]
    with pytest.raises(BoundsError, match="the step must be 1"):
        buffer[:4:2] = b"ab"
    assert not any(buffer.view)


def test_views_outlive_the_buffer(space: AddressSpace) -> None:
    buffer = space.alloc(4096)
    buffer[:4] = b"data"
    view, part, array = memoryview(buffer), buffer[:4], buffer.array("<u2")
    buffer.close()
    del buffer
    gc.collect()
    assert bytes(view[:4]) == bytes(part) == array[:2].tobytes() == b"data"


def test_file_of_a_buffer(space: AddressSpace, buffer: DmaBuffer) -> None:
    with space.alloc(4096, backing="memfd") as shared:
        shared[:4] = b"data"
        assert os.pread(shared.fileno(), 4, 0) == b"data"
    for without in (shared, buffer):
        with pytest.raises(ClosedError, match="has no memory file: closed, or backing is"):
            without.fileno()


def test_closing_twice(space: AddressSpace) -> None:
    buffer = space.alloc(4096, backing="memfd")
    buffer.close()
    buffer.close()
    assert buffer.closed


def test_dropped_buffer_leaves_no_file(space: AddressSpace) -> None:
    buffer = space.alloc(4096, backing="memfd")
    number = buffer.fileno()
    del buffer
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert len(space.mappings) == 1, "though the memory stays, as long as devices reach it"
