"""The split virtqueue against a device written from the specification."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.virtio.model import DeviceQueue, Memory
from vfio_user import DmaSlice, Iova
from vfio_user.drivers.virtio import QueueLayout, SplitQueue, VirtioQueueFullError, VirtioRingError
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError


class Bench:
    """A queue, its device, and memory for data."""

    def __init__(self, size: int = 8, *, event_index: bool = False, table_entries: int = 0) -> None:
        self.memory = Memory()
        area = self.memory.take(QueueLayout(size, table_entries).num_bytes)
        self.kicks = 0
        self.queue: SplitQueue[object] = SplitQueue(
            size, area, notify=self._kicked, event_index=event_index, table_entries=table_entries
        )
        self.device = DeviceQueue.of(self.memory, area, size)
        self.device.event_index = event_index
        self.data = self.memory.take(1 << 16)

    def _kicked(self) -> None:
        self.kicks += 1

    def part(self, begin: int, size: int) -> tuple[int, int]:
        return self.data.iova + begin, size

    def fetch_all(self) -> list[int]:
        return [chain.head for chain in iter(self.device.fetch, None)]


@pytest.mark.parametrize("size", [1, 2, 8, 256, 32768])
@pytest.mark.parametrize("entries", [0, 1])
def test_parts_are_aligned_and_do_not_overlap(size: int, entries: int) -> None:
    layout = QueueLayout(size, entries)
    assert layout.descriptors == 0
    assert layout.available >= 16 * size
    assert layout.used % 4 == 0
    assert layout.used >= layout.available + 6 + 2 * size
    assert layout.tables % 16 == 0
    assert layout.tables >= layout.used + 6 + 8 * size
    assert layout.num_bytes == layout.tables + 16 * size * entries


@pytest.mark.parametrize(("size", "entries"), [(0, 0), (3, 0), (65536, 0), (-4, 0), (4, 5), (4, -1)])
def test_sizes_that_can_not_be(size: int, entries: int) -> None:
    with pytest.raises(BoundsError, match=r"virtqueue of|indirect tables of"):
        QueueLayout(size, entries)


def test_memory_that_can_not_be() -> None:
    with pytest.raises(BoundsError, match="are needed"):
        SplitQueue(8, DmaSlice(memoryview(bytearray(64)), Iova(0)), notify=bool)
    with pytest.raises(AlignmentError, match="no multiple of 16"):
        SplitQueue(8, DmaSlice(memoryview(bytearray(4096)), Iova(8)), notify=bool)


@pytest.mark.parametrize("table_entries", [0, 4])
def test_a_buffer_goes_and_comes_back(table_entries: int) -> None:
    bench = Bench(table_entries=table_entries)
    bench.data.view[:5] = b"hello"
    bench.queue.add([bench.part(0, 2), bench.part(2, 3)], [bench.part(100, 3), bench.part(200, 8)], "token")
    assert bench.device.fetch() is None, "not before the kick"
    assert bench.queue.kick()
    assert bench.kicks == 1
    assert bench.queue.num_free == (7 if table_entries else 4)
    chain = bench.device.fetch()
    assert chain is not None
    assert chain.data == b"hello"
    assert [len(part) for part in chain.writable] == [3, 8]
    assert bench.queue.reap() == []
    bench.device.give_back(chain.head, chain.fill(b"goodbye"))
    assert bench.queue.pending()
    assert bench.queue.reap() == [("token", 7)]
    assert bytes(bench.data.view[100:103]) + bytes(bench.data.view[200:204]) == b"goodbye"
    assert (bench.queue.num_free, bench.queue.num_in_flight, bench.queue.pending()) == (8, 0, False)


def test_many_buffers_take_one_notification() -> None:
    bench = Bench()
    for number in range(8):
        bench.queue.add([], [bench.part(number, 1)], number)
    assert bench.queue.kick()
    assert not bench.queue.kick(), "nothing new"
    assert bench.kicks == 1
    heads = bench.fetch_all()
    assert sorted(heads) == list(range(8))
    for head in reversed(heads):
        bench.device.give_back(head, 1)
    assert [token for token, _ in bench.queue.reap(limit=3)] == [7, 6, 5]
    assert [token for token, _ in bench.queue.reap()] == [4, 3, 2, 1, 0]


def test_queue_that_is_full() -> None:
    bench = Bench(size=4)
    bench.queue.add([bench.part(0, 1)] * 3, [], "three")
    with pytest.raises(VirtioQueueFullError, match="1 of 4 descriptors free, and 2 are needed"):
        bench.queue.add([bench.part(0, 1)], [bench.part(0, 1)], "two")
    bench.queue.add([bench.part(0, 1)], [], "one")
    with pytest.raises(VirtioQueueFullError):
        bench.queue.add([bench.part(0, 1)], [], "none")
    bench.queue.kick()
    for head in bench.fetch_all():
        bench.device.give_back(head, 0)
    assert [token for token, _ in bench.queue.reap()] == ["three", "one"]
    assert bench.queue.num_free == 4


@pytest.mark.parametrize("table_entries", [0, 2])
def test_buffers_that_can_not_be(table_entries: int) -> None:
    bench = Bench(size=4, table_entries=table_entries)
    with pytest.raises(ArgumentError, match="at least one segment"):
        bench.queue.add([], [], "empty")
    with pytest.raises(BoundsError, match="5 segments in one buffer; 4 at most"):
        bench.queue.add([bench.part(0, 1)] * 5, [], "long")
    for wrong in ((0, 0), (-1, 5), (0, 1 << 32), (1 << 64, 4)):
        for segments in ([wrong], [bench.part(0, 1), wrong], [bench.part(0, 1), bench.part(0, 1), wrong]):
            with pytest.raises(BoundsError):
                bench.queue.add([], segments, "wrong")
    assert (bench.queue.num_free, bench.queue.num_in_flight) == (4, 0)
    assert not bench.queue.kick()


@pytest.mark.parametrize("event_index", [False, True])
def test_device_that_wants_no_notification(event_index: bool) -> None:
    bench = Bench(event_index=event_index)
    bench.device.want_notification(False)
    bench.queue.add([bench.part(0, 1)], [], "quiet")
    assert not bench.queue.kick()
    assert bench.device.fetch() is not None, "it is visible nevertheless"
    bench.device.want_notification(True)
    bench.queue.add([bench.part(0, 1)], [], "loud")
    assert bench.queue.kick()
    assert bench.kicks == 1


@pytest.mark.parametrize("event_index", [False, True])
def test_interrupts_are_asked_for_and_not(event_index: bool) -> None:
    bench = Bench(event_index=event_index)
    wanted = []
    bench.queue.disable_interrupts()
    for turn in range(3):
        bench.queue.add([bench.part(0, 1)], [], turn)
        bench.queue.kick()
        chain = bench.device.fetch()
        assert chain is not None
        wanted.append(bench.device.give_back(chain.head, 0))
        safe = bench.queue.enable_interrupts()
        assert not safe, "something came before interrupts were on"
        assert len(bench.queue.reap()) == 1
        assert bench.queue.enable_interrupts()
        if turn == 1:
            bench.queue.disable_interrupts()
    assert wanted == [False, True, False]


def test_one_interrupt_for_several_buffers() -> None:
    bench = Bench(event_index=True)
    for number in range(6):
        bench.queue.add([bench.part(0, 1)], [], number)
    bench.queue.kick()
    assert bench.queue.enable_interrupts(after=4)
    assert [bench.device.give_back(head, 0) for head in bench.fetch_all()] == [False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("head", "written", "index", "reason"),
    [
        (8, 0, None, "used buffer 8, which is not in flight"),
        (0xFFFFFFFF, 0, None, "used buffer 4294967295, which is not in flight"),
        (2, 0, None, "used buffer 2, which is not in flight"),
        (7, 5, None, r"wrote 5 bytes into a buffer with room for 4"),
        (7, 4, 3, r"used 3 buffers, and 1 were in flight"),
        (7, 4, 0xFFFF, r"used 65535 buffers, and 1 were in flight"),
    ],
)
def test_used_ring_that_can_not_be_true(head: int, written: int, index: int | None, reason: str) -> None:
    bench = Bench()
    heads = {}
    for token in "a", "b":
        bench.queue.add([], [bench.part(0, 4)], token)
        bench.queue.kick()
        chain = bench.device.fetch()
        assert chain is not None
        heads[chain.head] = token
    assert list(heads) == [0, 1]
    bench.device.give_back(0, 4)
    assert bench.queue.reap() == [("a", 4)]
    bench.device.give_back(1 if head == 7 else head, written, index=None if index is None else (index + 1) & 0xFFFF)
    for _ in range(2):
        with pytest.raises(VirtioRingError, match=reason):
            bench.queue.reap()
    with pytest.raises(VirtioRingError):
        bench.queue.add([], [bench.part(0, 4)], "c")
    assert bench.queue.reset() == ["b"], "each token comes out once"
    bench.queue.add([], [bench.part(0, 4)], "d")


def test_buffers_before_a_wrong_entry_are_not_lost() -> None:
    bench = Bench()
    for token in "ab":
        bench.queue.add([], [bench.part(0, 4)], token)
    bench.queue.kick()
    assert bench.fetch_all() == [0, 1]
    bench.device.give_back(0, 1)
    bench.device.give_back(0, 1)
    assert bench.queue.reap() == [("a", 1)]
    with pytest.raises(VirtioRingError, match="buffer 0, which is not in flight"):
        bench.queue.reap()
    assert bench.queue.reset() == ["b"]


def test_buffer_that_was_not_handed_over_can_not_come_back() -> None:
    bench = Bench()
    bench.queue.add([], [bench.part(0, 4)], "waits for the kick")
    bench.device.give_back(0, 1)
    with pytest.raises(VirtioRingError, match="used 1 buffers, and 0 were in flight"):
        bench.queue.reap()


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32), event_index=st.booleans(), table_entries=st.sampled_from([0, 3]))
def test_whatever_happens_every_token_comes_back_once_with_its_data(
    seed: int, event_index: bool, table_entries: int
) -> None:
    chance = random.Random(seed)
    bench = Bench(size=16, event_index=event_index, table_entries=table_entries)
    queue, device = bench.queue, bench.device
    numbers = itertools.count()
    sent: dict[int, bytes] = {}
    fetched: list[tuple[int, int]] = []
    back: list[int] = []

    def add() -> None:
        number = next(numbers)
        slot = number * 128
        content = number.to_bytes(4, "little") * chance.randint(1, 3)
        bench.data.view[slot : slot + len(content)] = content
        readable = [bench.part(slot, 4), bench.part(slot + 4, len(content) - 4)]
        try:
            queue.add(readable[: 1 if len(content) == 4 else 2], [bench.part(slot + 64, 16)], number)
        except VirtioQueueFullError:
            return
        sent[number] = content

    def fetch() -> None:
        chain = device.fetch()
        if chain is not None:
            number = int.from_bytes(chain.data[:4], "little")
            assert chain.data == sent[number]
            fetched.append((chain.head, chain.fill(chain.data[::-1])))

    def finish() -> None:
        if fetched:
            device.give_back(*fetched.pop(chance.randrange(len(fetched))))

    def reap() -> None:
        for token, written in queue.reap(chance.choice([None, 1, 2])):
            assert isinstance(token, int)
            slot = token * 128 + 64
            assert bytes(bench.data.view[slot : slot + written]) == sent[token][::-1]
            back.append(token)

    for _ in range(300):
        chance.choice([add, add, queue.kick, fetch, finish, reap])()
    left = queue.reset()
    assert sorted(map(str, [*back, *left])) == sorted(map(str, sent))
    assert (queue.num_free, queue.num_in_flight) == (16, 0)


def test_indexes_wrap() -> None:
    bench = Bench(size=4, event_index=True)
    for number in range(70000):
        bench.queue.add([], [bench.part(0, 4)], number)
        assert bench.queue.kick()
        chain = bench.device.fetch()
        assert chain is not None
        bench.device.want_notification(True)
        assert bench.device.give_back(chain.head, 2)
        assert bench.queue.reap() == [(number, 2)]
