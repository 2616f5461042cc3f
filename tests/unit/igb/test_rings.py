"""The rings of the 82576 against a controller written from the datasheet (7.1.5, 7.2.2)."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user import DmaSlice, Iova
from vfio_user.drivers.igb.copy import cut
from vfio_user.drivers.igb.rings import RxRing, TxRing, check_entries
from vfio_user.errors import BoundsError, UnsupportedError

SIZE = 2048
RING, BUFFERS = 0x1_0000_0000, 0x2_0000_0000


class Bench:
    """A ring of each kind, and what the controller does with them."""

    def __init__(self, entries: int = 8) -> None:
        self.entries = entries
        self.rings = [memoryview(bytearray(entries * 16)) for _ in range(2)]
        self.buffers = [memoryview(bytearray(entries * SIZE)) for _ in range(2)]
        parts = (
            [DmaSlice(view, Iova(RING)) for view in self.rings],
            [DmaSlice(view, Iova(BUFFERS)) for view in self.buffers],
        )
        self.rx = RxRing(parts[0][0], parts[1][0], entries, SIZE)
        self.tx = TxRing(parts[0][1], parts[1][1], entries, SIZE)
        self.rx_head = self.tx_head = 0

    def transmit(self) -> bytes | None:
        """Send the next frame, as far as the tail."""
        frame, ended = b"", False
        while not ended:
            if self.tx_head == self.tx.tail:
                assert not frame, "half a frame"
                return None
            at = self.tx_head * 16
            iova, command, payload = struct.unpack_from("<QII", self.rings[1], at)
            assert command & (3 << 20 | 1 << 29 | 1 << 25) == 3 << 20 | 1 << 29 | 1 << 25
            size = command & 0xFFFF
            assert iova // 4096 == (iova + size - 1) // 4096, "a piece is in one page"
            begin = iova - BUFFERS
            frame += bytes(self.buffers[1][begin : begin + size])
            ended = bool(command & 1 << 24)
            if command & 1 << 27:
                struct.pack_into("<QII", self.rings[1], at, 0, 0, 1)
            self.tx_head = (self.tx_head + 1) % self.entries
        assert payload >> 14 == len(frame)
        return frame

    def receive(self, frame: bytes, status: int = 0b11) -> bool:
        """Fill the next buffer; tell whether there was one."""
        if self.rx_head == self.rx.tail:
            return False
        at = self.rx_head * 16
        iova, header = struct.unpack_from("<QQ", self.rings[0], at)
        assert header == 0
        begin = iova - BUFFERS
        self.buffers[0][begin : begin + len(frame)] = frame
        struct.pack_into("<QIHH", self.rings[0], at, 0x55AA, status, len(frame), 0)
        self.rx_head = (self.rx_head + 1) % self.entries
        return True


def test_a_batch_reports_once() -> None:
    bench = Bench()
    assert bench.tx.put([b"a" * 60, b"b" * 61, b"c" * 62]) == 3
    assert (bench.tx.tail, bench.tx.in_flight) == (3, 3)
    assert [bench.transmit() for _ in range(2)] == [b"a" * 60, b"b" * 61]
    assert bench.tx.reclaim() == 0, "only the last one reports"
    assert bench.transmit() == b"c" * 62
    assert bench.tx.reclaim() == 3
    assert (bench.tx.num_free, bench.tx.in_flight) == (7, 0)


def test_ring_that_is_full_takes_what_fits() -> None:
    bench = Bench()
    frames = [bytes([n]) * 60 for n in range(10)]
    assert bench.tx.put(frames) == 7
    assert bench.tx.put(frames) == 0
    assert [bench.transmit() for _ in range(8)] == [*frames[:7], None]
    assert bench.tx.reclaim() == 7


def test_dma_memory_is_sent_from_where_it_is() -> None:
    bench = Bench()
    bench.buffers[1][100:200] = b"z" * 100
    mine = DmaSlice(bench.buffers[1][100:200], Iova(BUFFERS + 100))
    assert bench.tx.put([mine]) == 1
    assert bench.transmit() == b"z" * 100


def test_a_frame_over_pages_takes_a_descriptor_for_each() -> None:
    bench = Bench()
    data = random.Random(4096).randbytes(9000)
    bench.buffers[1][4000:13000] = data
    mine = DmaSlice(bench.buffers[1][4000:13000], Iova(BUFFERS + 4000))
    assert bench.tx.put([mine, mine, mine]) == 1, "four of seven descriptors each"
    assert (bench.tx.tail, bench.tx.num_free, bench.tx.in_flight) == (4, 3, 1)
    assert bench.transmit() == data
    assert bench.tx.reclaim() == 1
    assert (bench.tx.num_free, bench.tx.in_flight) == (7, 0)


def test_start_over_counts_what_is_lost() -> None:
    bench = Bench()
    bench.tx.put([b"a" * 60] * 3)
    assert bench.tx.reset() == 3
    assert bench.tx.reset() == 0
    assert (bench.tx.num_free, bench.tx.tail) == (7, 0)


def test_frames_come_in_order_and_their_buffers_go_back() -> None:
    bench = Bench()
    for turn in range(10):
        frames = [bytes([turn, n]) * 40 for n in range(5)]
        assert all(bench.receive(frame) for frame in frames)
        assert bench.rx.ready()
        assert bench.rx.take(2) + bench.rx.take(100) == frames
        assert not bench.rx.ready()
        assert bench.rx.take(1) == []


def test_one_buffer_stays_with_the_driver() -> None:
    bench = Bench()
    assert [bench.receive(b"x" * 60) for _ in range(8)] == [True] * 7 + [False]
    assert len(bench.rx.take(100)) == 7


@pytest.mark.parametrize(("status", "size"), [(0b01, 60), (1 << 31 | 0b11, 60)], ids=["in pieces", "damaged"])
def test_bad_frames_are_dropped_and_counted(status: int, size: int) -> None:
    bench = Bench()
    bench.receive(b"1" * 60)
    bench.receive(b"x" * size, status)
    bench.receive(b"2" * 60)
    assert bench.rx.take(10) == [b"1" * 60, b"2" * 60]
    assert bench.rx.num_bad == 1


def test_length_beyond_the_buffer_is_not_believed() -> None:
    bench = Bench()
    bench.receive(b"x" * 60)
    struct.pack_into("<H", bench.rings[0], 12, SIZE + 1)
    assert bench.rx.take(10) == []
    assert bench.rx.num_bad == 1


def test_memory_of_the_caller() -> None:
    ring = memoryview(bytearray(8 * 16))
    rx = RxRing(DmaSlice(ring, Iova(RING)), None, 8, 4096)
    assert rx.tail == 0
    for turn in range(3):
        for number in range(4):
            rx.offer(0xAB000 + number)
        assert rx.tail == (turn + 1) * 4 % 8
        for number in range(4):
            slot = turn * 4 % 8 + number
            assert struct.unpack_from("<QQ", ring, slot * 16) == (0xAB000 + number, 0)
            status = 0b11 if number else 1 << 31 | 0b11
            struct.pack_into("<QIHH", ring, slot * 16, 0, status, 100 + number, 0)
        assert rx.take_lengths(10) == [0, 101, 102, 103]


@settings(max_examples=50)
@given(st.integers(0, 1 << 32))
def test_whatever_happens_frames_arrive_once_in_order(seed: int) -> None:
    chance = random.Random(seed)
    bench = Bench(16)
    sent: list[bytes] = []
    on_line: list[bytes] = []
    received: list[bytes] = []

    def put() -> None:
        frames = [len(sent).to_bytes(4, "little") + chance.randbytes(60) for _ in range(chance.randint(1, 6))]
        sent.extend(frames[: bench.tx.put(frames)])

    def transmit() -> None:
        frame = bench.transmit()
        if frame is not None:
            on_line.append(frame)

    def arrive() -> None:
        if on_line and bench.receive(on_line[0]):
            on_line.pop(0)

    def take() -> None:
        received.extend(bench.rx.take(chance.randint(1, 20)))

    for _ in range(300):
        chance.choice([put, transmit, transmit, arrive, arrive, take, bench.tx.reclaim])()
    while bench.transmit() or False:
        pass
    bench.tx.reclaim()
    assert bench.tx.in_flight == 0
    take()
    assert received == sent[: len(received)]


@pytest.mark.parametrize("entries", [0, 7, 12, 32776, -8])
def test_numbers_of_descriptors_that_can_not_be(entries: int) -> None:
    with pytest.raises(BoundsError, match=f"tx_entries is {entries}"):
        check_entries("tx_entries", entries)


@settings(max_examples=200)
@given(st.binary(min_size=60, max_size=200), st.integers(1, 200))
def test_cuts_cover_everything(block: bytes, times: int) -> None:
    data = memoryview(block * times)
    try:
        pieces = cut(data)
    except UnsupportedError:
        return
    covered = 0
    for begin, end in pieces:
        assert begin <= covered < end
        assert 60 <= end - begin <= 4096
        assert begin % 2 == 0
        covered = end
    assert covered == len(data)
    assert all(bytes(data[begin + 12 : begin + 14]) != b"\x08\x00" for begin, _ in pieces)


def test_cut_moves_away_from_special_types() -> None:
    data = memoryview(bytearray(10000))
    data[4096 + 12 : 4096 + 14] = b"\x81\x00"
    pieces = cut(data)
    assert pieces[0] == (0, 4096)
    assert pieces[1][0] == 4094
    data[12:14] = b"\x86\xdd"
    with pytest.raises(UnsupportedError, match=r"the bytes at 12 look like the type of a frame .*86dd"):
        cut(data)
    with pytest.raises(BoundsError, match="59 bytes can't be copied"):
        cut(data[:59])
