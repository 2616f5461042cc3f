"""Bulk copies and polling."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, DeadlineError, ZappedError

from .conftest import Bar, Thread

WIDTHS = [1, 2, 4, 8]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_readinto(bar: Bar, width: int, count: int) -> None:
    data = os.urandom(bar.size)
    bar.fill(data)
    buffer = bytearray(count * width)
    assert bar.mmio.readinto(64, buffer, width) == count * width
    assert buffer == data[64 : 64 + count * width]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 64, 65, 1000])
def test_write_block(bar: Bar, width: int, count: int) -> None:
    data = os.urandom(count * width)
    assert bar.mmio.write_block(64, data, width) == count * width
    assert bar.content(0, 64 + count * width + 64) == bytes(64) + data + bytes(64)


def test_read_block32(bar: Bar) -> None:
    data = os.urandom(4096 * 4)
    bar.fill(data)
    assert bar.mmio.read_block32(0, 4096) == data
    assert bar.mmio.read_block32(16, 2) == data[16:24]
    assert bar.mmio.read_block32(bar.size, 0) == b""


def test_width_is_four_unless_said(bar: Bar) -> None:
    with pytest.raises(AlignmentError, match="multiple of the access width, 4"):
        bar.mmio.readinto(2, bytearray(4))
    with pytest.raises(AlignmentError, match="buffer's size, 6 bytes"):
        bar.mmio.write_block(0, bytes(6))


def test_any_buffer_also_unaligned(bar: Bar) -> None:
    data = os.urandom(40)
    bar.mmio.write_block(0, memoryview(data)[1:33], 8)
    assert bar.content(0, 32) == data[1:33]
    target = bytearray(41)
    bar.mmio.readinto(0, memoryview(target)[3:35], 8)
    assert target == bytes(3) + data[1:33] + bytes(6)
    array = numpy.zeros(8, "<u4")
    bar.mmio.readinto(0, array)  # type: ignore[arg-type]
    assert array.tobytes() == data[1:33]


@pytest.mark.parametrize("width", [0, 3, 5, 16, -4, 2**64])
def test_widths_that_are_none(bar: Bar, width: int) -> None:
    uses: list[Callable[[], object]] = [
        lambda: bar.mmio.readinto(0, bytearray(8), width),
        lambda: bar.mmio.write_block(0, bytes(8), width),
        lambda: bar.mmio.poll(0, width, 0, 0, 0),
    ]
    for use in uses:
        with pytest.raises(ArgumentError, match="width"):
            use()


def test_bounds_of_blocks(bar: Bar) -> None:
    for offset, size in ((bar.size, 4), (bar.size - 4, 8), (0, bar.size + 4), (2**63, 4), (2**64 - 4, 8), (-4, 4)):
        with pytest.raises(BoundsError):
            bar.mmio.readinto(offset, bytearray(size))
        with pytest.raises(BoundsError):
            bar.mmio.write_block(offset, bytes(size))
    for offset, count in ((0, bar.size // 4 + 1), (bar.size, 1)):
        with pytest.raises(BoundsError):
            bar.mmio.read_block32(offset, count)
    with pytest.raises(ArgumentError):
        bar.mmio.read_block32(0, 2**62)
    with pytest.raises(ArgumentError):
        bar.mmio.read_block32(0, -1)


def test_wrong_types(bar: Bar) -> None:
    mmio: Any = bar.mmio
    uses: list[Callable[[], object]] = [
        lambda: mmio.readinto(0, bytes(4)),
        lambda: mmio.readinto(0, 4),
        lambda: mmio.readinto(0, "abcd"),
        lambda: mmio.write_block(0, [1, 2]),
        lambda: mmio.readinto(0),
        lambda: mmio.write_block(0, b"", 4, 4),
        lambda: mmio.read_block32(0),
        lambda: mmio.read_block32("0", 1),
        lambda: mmio.view(0),
        lambda: mmio.view("0", 1),
    ]
    for use in uses:
        with pytest.raises((TypeError, BufferError)):
            use()


def test_the_gil_is_released_for_long_copies(make_bar: Callable[..., Bar]) -> None:
    bar = make_bar(size=64 << 20)
    stop, ticks = threading.Event(), [0]

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    buffer = bytearray(bar.size)
    bar.mmio.readinto(0, buffer, 1)
    before = ticks[0]
    bar.mmio.readinto(0, buffer, 1)
    during = ticks[0] - before
    stop.set()
    thread.join()
    assert during > 100


def test_a_copy_from_one_region_to_another(bar: Bar, make_bar: Callable[..., Bar]) -> None:
    other = make_bar()
    other.fill(b"\x21" * 64)
    bar.mmio.write_block(0, other.mmio.view(0, 64), 8)
    assert bar.content(0, 64) == b"\x21" * 64


# -- polling


def test_poll_at_once(bar: Bar) -> None:
    bar.mmio.write32(8, 0x12345678)
    assert bar.mmio.poll(8, 4, 0xFF, 0x78, 0) == 0x12345678
    assert bar.mmio.poll(offset=8, width=1, mask=0xFF, equals=0x78, timeout=0.0) == 0x78
    assert bar.mmio.poll(8, 8, 0, 0, 0) == 0x12345678


@pytest.mark.parametrize("width", WIDTHS)
def test_poll_waits(bar: Bar, spawn: Callable[..., Thread], width: int) -> None:
    poller = spawn(lambda: bar.mmio.poll(16, width, 0x80, 0x80, 10))
    time.sleep(0.05)
    assert poller.is_alive()
    bar.mmio.write8(16, 0x81)
    assert poller.finish() == 0x81


def test_poll_has_a_deadline(bar: Bar) -> None:
    bar.mmio.write32(4, 0xABC)
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="register at 4 did not become 0x1 under mask 0x1; it is 0xabc"):
        bar.mmio.poll(4, 4, 1, 1, 0.1)
    assert 0.1 <= time.monotonic() - start < 1
    with pytest.raises(TimeoutError):
        bar.mmio.poll(4, 4, 1, 1, 0)


def test_poll_does_not_hold_up_a_writer(bar: Bar, spawn: Callable[..., Thread]) -> None:
    poller = spawn(lambda: bar.mmio.poll(0, 4, 1, 1, 20))
    for _ in range(20):
        start = time.monotonic()
        bar.window.lock_write(5)
        bar.window.unlock_write()
        assert time.monotonic() - start < 1
    bar.window.zap()
    with pytest.raises(ZappedError):
        poller.finish()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((2, 4, 0, 0, 1), AlignmentError),
        ((1 << 20, 4, 0, 0, 1), BoundsError),
        ((0, 1, 0x100, 0, 1), ArgumentError),
        ((0, 4, 0xFF, 0x100, 1), ArgumentError),
        ((0, 4, -1, 0, 1), ArgumentError),
        ((0, 4, 0, 0, -1), ArgumentError),
        ((0, 4, 0, 0, None), TypeError),
        ((0, 4, "1", 0, 1), TypeError),
        ((0, 4), TypeError),
    ],
)
def test_polls_that_make_no_sense(bar: Bar, arguments: tuple[int, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        bar.mmio.poll(*arguments)


def test_equals_outside_of_mask(bar: Bar) -> None:
    with pytest.raises(ArgumentError, match="could never end"):
        bar.mmio.poll(0, 4, 0xF0, 0x01, 1)


@pytest.fixture(scope="module")
def shared() -> Iterator[Bar]:
    bar = Bar()
    yield bar
    bar.close()


@given(data=st.data(), width=st.sampled_from(WIDTHS))
def test_blocks_like_a_bytearray(shared: Bar, data: st.DataObject, width: int) -> None:
    """Random blocks of random widths leave what slices of a bytearray leave."""
    model = bytearray(shared.content(0, 4096))
    for _ in range(data.draw(st.integers(1, 5))):
        count = data.draw(st.integers(0, 100))
        offset = data.draw(st.integers(0, (4096 - count * width) // width)) * width
        block = data.draw(st.binary(min_size=count * width, max_size=count * width))
        shared.mmio.write_block(offset, block, width)
        model[offset : offset + len(block)] = block
    result = bytearray(4096)
    shared.mmio.readinto(0, result, width)
    assert result == model
