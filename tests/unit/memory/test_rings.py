"""Rings that a device shares: commands by the array, each accounted for once, whatever the device writes."""

from __future__ import annotations

import gc
import random
import struct
import threading
import weakref
from array import array
from typing import Any

import pytest

from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, ZappedError
from vfio_user.memory import RingPair

from .conftest import Bar, Thread

ENTRIES = 8
LAYOUT = {
    "entries": ENTRIES,
    "submission_size": 32,
    "completion_size": 16,
    "id_at": 2,
    "done_id_at": 12,
    "phase_at": 14,
    "phase_mask": 1,
    "error_mask": 0xFFFE,
}
TAIL, HEAD = 0x40, 0x44


class Device:
    """Writes completions, rightly or wrongly, and reads the doorbells."""

    def __init__(self, bar: Bar, entries: int = ENTRIES, **options: Any) -> None:
        self.bar = bar
        self.entries = entries
        self.submissions, self.completions = bytearray(entries * 32), bytearray(entries * 16)
        layout = LAYOUT | {"entries": entries}
        self.rings = RingPair(self.submissions, self.completions, bar.mmio, TAIL, HEAD, layout, **options)
        self.rings.reset()
        self.rings.start()
        self.taken = self.place = 0
        self.phase = 1

    def bell(self, offset: int) -> int:
        return int.from_bytes(self.bar.content(offset, 4), "little")

    def fetch(self) -> list[bytes]:
        """Give the commands that the doorbell told of."""
        found = []
        while self.taken != self.bell(TAIL):
            found.append(bytes(self.submissions[self.taken * 32 : self.taken * 32 + 32]))
            self.taken = (self.taken + 1) % self.entries
        return found

    def complete(self, command_id: int, status: int = 0, queue: int = 0) -> None:
        entry = struct.pack("<IIHHHH", command_id * 3, 0, 0, queue, command_id, status << 1 | self.phase)
        self.completions[self.place * 16 : self.place * 16 + 16] = entry
        self.place += 1
        if self.place == self.entries:
            self.place, self.phase = 0, self.phase ^ 1


def rows(count: int) -> bytes:
    return b"".join(struct.pack("<HHI24x", 0xAB, 0xFFFF, number) for number in range(count))


def id_of(command: bytes) -> int:
    return int.from_bytes(command[2:4], "little")


def numbers(*values: int) -> array[int]:
    return array("Q", values)


@pytest.fixture
def device(bar: Bar) -> Device:
    return Device(bar)


def reap(rings: RingPair, most: int = 64) -> list[int]:
    found = numbers(*[0] * most)
    return list(found[: rings.reap(found, None)])


def test_a_batch_goes_out_with_one_doorbell_and_comes_back_in_any_order(device: Device) -> None:
    order = random.Random(1)
    for turn in range(50):
        count = order.randrange(1, ENTRIES)
        wanted = [turn << 40 | number for number in range(count)]
        assert device.rings.submit(rows(count), numbers(*wanted), None, None, False)
        commands = device.fetch()
        assert [command[4:8] for command in commands] == [struct.pack("<I", n) for n in range(count)]
        ids = [id_of(command) for command in commands]
        assert len(set(ids)) == count
        order.shuffle(ids)
        for command_id in ids:
            device.complete(command_id)
        assert sorted(reap(device.rings)) == wanted
        assert device.bell(HEAD) == device.place
    assert (device.rings.num_free, device.rings.num_flying, device.rings.num_failed) == (ENTRIES - 1, 0, 0)


def test_rows_are_picked_from_a_table_and_what_was_reaped_goes_out_again(device: Device) -> None:
    table, which = rows(100), numbers(7, 99, 7, 0)
    assert device.rings.submit(table, which, None, None, True)
    assert [int.from_bytes(command[4:8], "little") for command in device.fetch()] == [7, 99, 7, 0]
    for command_id in device.rings.flying():
        device.complete(command_id)
    assert device.rings.reap(which, None) == 4
    assert device.rings.submit(table, which, 3, None, True)
    assert len(device.fetch()) == 3


def test_completions_come_with_the_numbers(device: Device) -> None:
    device.rings.submit(rows(2), numbers(5, 6), None, None, False)
    first, second = (id_of(command) for command in device.fetch())
    device.complete(second, status=0x80)
    device.complete(first)
    found, completions = numbers(0, 0), bytearray(32)
    assert device.rings.reap(found, completions) == 2
    assert list(found) == [6, 5]
    assert struct.unpack_from("<I", completions)[0] == second * 3
    assert device.rings.num_failed == 1


def test_what_does_not_fit_stays_for_the_next_call(device: Device) -> None:
    device.rings.submit(rows(5), numbers(1, 2, 3, 4, 5), None, None, False)
    for command in device.fetch():
        device.complete(id_of(command))
    assert reap(device.rings, 2) == [1, 2]
    assert (device.rings.num_ready, device.rings.num_free) == (3, ENTRIES - 1 - 3)
    assert device.rings.reap(numbers(0, 0, 0), bytearray(16)) == 1
    assert reap(device.rings) == [4, 5]


def test_a_full_ring_takes_nothing(device: Device) -> None:
    assert device.rings.submit(rows(6), numbers(*range(6)), None, None, False)
    assert not device.rings.submit(rows(2), numbers(6, 7), None, None, False)
    assert device.rings.submit_for(rows(2), [object(), object()]) is False
    assert len(device.fetch()) == 6
    assert device.rings.submit(rows(1), numbers(6), None, None, False)
    assert device.rings.num_free == 0


def test_owners_and_numbers_share_the_rings(device: Device) -> None:
    owners = ["a", "b"]
    ids = device.rings.submit_for(rows(2), owners)
    assert ids
    device.rings.submit(rows(1), numbers(9), None, None, False)
    commands = device.fetch()
    assert [id_of(command) for command in commands[:2]] == ids
    for command in reversed(commands):
        device.complete(id_of(command))
    device.rings.scan()
    assert (device.rings.num_ready, device.rings.num_finished) == (1, 2)
    assert [(owner, completion[12:14]) for owner, completion in device.rings.take()] == [
        ("b", ids[1].to_bytes(2, "little")),
        ("a", ids[0].to_bytes(2, "little")),
    ]
    assert reap(device.rings) == [9]


@pytest.mark.parametrize("kind", ["twice", "old", "never", "another queue"])
def test_a_stray_completion_is_kept_apart(bar: Bar, kind: str) -> None:
    device = Device(bar, match=(10, 0))
    device.rings.submit(rows(2), numbers(1, 2), None, None, False)
    first, second = (id_of(command) for command in device.fetch())
    device.complete(first)
    if kind == "old":
        assert reap(device.rings) == [1]
    device.complete(0x7777 if kind == "never" else second if kind == "another queue" else first, queue=kind[0] == "a")
    if kind != "another queue":
        device.complete(second)
    assert reap(device.rings) == {"old": [2], "another queue": [1]}.get(kind, [1, 2])
    assert device.rings.strayed
    assert not device.rings.submit(rows(1), numbers(3), None, None, False)
    stray = device.rings.take_stray()
    assert stray is not None
    assert device.rings.take_stray() is None
    device.rings.stop()
    device.rings.end_all(bytes(16))
    assert reap(device.rings) == ([2] if kind == "another queue" else [])
    device.rings.reset()
    assert not device.rings.strayed


def test_identifiers_survive_many_turns_and_never_repeat_soon(bar: Bar) -> None:
    device = Device(bar, entries=300)
    seen: dict[int, int] = {}
    for turn in range(2000):
        device.rings.submit(rows(1), numbers(turn), None, None, False)
        (command,) = device.fetch()
        assert id_of(command) != 0xFFFF
        assert turn - seen.get(id_of(command), -1000) > 100
        seen[id_of(command)] = turn
        device.complete(id_of(command))
        assert reap(device.rings) == [turn]


def test_ending_gives_each_command_its_outcome(device: Device) -> None:
    owner = object()
    ids = device.rings.submit_for(rows(1), [owner])
    assert ids
    device.rings.submit(rows(2), numbers(1, 2), None, None, False)
    device.rings.stop()
    assert not device.rings.submit(rows(1), numbers(3), None, None, False)
    outcome = bytearray(16)
    struct.pack_into("<H", outcome, 14, 0x6E2)
    assert device.rings.end_all(outcome) == 3
    assert device.rings.end_all(outcome) == 0
    ((ended, completion),) = device.rings.take()
    assert ended is owner
    assert struct.unpack_from("<HH", completion, 12) == (ids[0], 0x6E2)
    assert reap(device.rings) == [1, 2]
    assert device.rings.num_failed == 3


def test_a_lazy_ring_tells_the_device_when_it_could_run_out_of_room(bar: Bar) -> None:
    device = Device(bar, lazy=True)
    for turn in range(30):
        device.rings.submit(rows(3), numbers(1, 2, 3), None, None, False)
        # What is in flight must fit between the entries that the device knows to be free.
        unknown = (device.place - device.bell(HEAD)) % ENTRIES
        assert unknown + 3 <= ENTRIES - 1
        if turn == 0:
            assert device.bell(HEAD) == 0
        for command in device.fetch():
            device.complete(id_of(command))
        assert reap(device.rings) == [1, 2, 3]


def test_nothing_is_handed_over_while_the_memory_is_away(device: Device) -> None:
    device.rings.submit(rows(1), numbers(1), None, None, False)
    (first,) = device.fetch()
    device.bar.window.zap()
    owner = Thread(lambda: None)
    before = gc.get_referrers(owner)
    with pytest.raises(ZappedError):
        device.rings.submit(rows(2), numbers(2, 3), None, "kept", False)
    with pytest.raises(ZappedError):
        device.rings.submit_for(rows(1), [owner])
    assert len(gc.get_referrers(owner)) == len(before)
    assert (device.rings.num_flying, device.rings.num_free) == (1, ENTRIES - 2)
    device.complete(id_of(first))
    with pytest.raises(ZappedError):
        device.rings.scan()
    device.bar.window.revive(device.bar.fd)
    assert reap(device.rings) == [1]
    assert device.bell(HEAD) == 1
    device.rings.submit(rows(1), numbers(4), None, None, False)
    assert device.bell(TAIL) == 2


def test_what_is_done_is_given_though_the_device_can_not_be_told(device: Device) -> None:
    device.rings.submit(rows(2), numbers(1, 2), None, None, False)
    first, second = (id_of(command) for command in device.fetch())
    device.complete(first)
    device.bar.window.zap()
    assert reap(device.rings) == [1]
    with pytest.raises(ZappedError):
        reap(device.rings)
    device.complete(second)
    device.bar.window.revive(device.bar.fd)
    assert reap(device.rings) == [2]
    assert device.bell(HEAD) == 2


class Kept:
    pass


def test_memory_is_kept_until_the_last_command_is_taken(device: Device) -> None:
    kept = Kept()
    gone = weakref.ref(kept)
    device.rings.submit(rows(2), numbers(1, 2), None, kept, False)
    del kept
    commands = device.fetch()
    device.complete(id_of(commands[0]))
    assert reap(device.rings) == [1]
    gc.collect()
    assert gone() is not None
    device.complete(id_of(commands[1]))
    device.rings.scan()
    assert gone() is not None
    assert reap(device.rings) == [2]
    assert gone() is None


def test_rings_in_a_cycle_are_collected(bar: Bar) -> None:
    device = Device(bar)
    kept = Kept()
    kept.rings = device.rings  # type: ignore[attr-defined]
    device.rings.submit(rows(1), numbers(1), None, kept, False)
    device.rings.submit_for(rows(1), [kept])
    gone = weakref.ref(kept)
    del kept, device
    gc.collect()
    assert gone() is None


def test_callbacks_get_number_and_status_once(device: Device) -> None:
    device.rings.submit(rows(4), numbers(1, 2, 3, 4), None, None, False)
    for command in device.fetch():
        device.complete(id_of(command), status=5)
    seen: list[tuple[int, int]] = []

    def note(number: int, word: int) -> None:
        seen.append((number, word))
        if number == 2:
            raise KeyError(number)
        if number == 3:
            device.rings.submit(rows(1), numbers(9), None, None, False)

    with pytest.raises(KeyError):
        device.rings.each(note)
    assert device.rings.each(note) == 2
    assert seen == [(n, 10) for n in (1, 2, 3, 4)]
    assert device.rings.each(note) == 0
    (again,) = device.fetch()
    device.complete(id_of(again))
    assert device.rings.each(note) == 1


@pytest.mark.parametrize("turns", range(ENTRIES))
def test_looking_for_several_at_once(device: Device, turns: int) -> None:
    """Wherever in the ring they come to lie, and across its end."""
    for _ in range(turns):
        device.rings.submit(rows(1), numbers(0), None, None, False)
        device.complete(id_of(device.fetch()[0]))
        assert reap(device.rings) == [0]
    device.rings.submit(rows(5), numbers(1, 2, 3, 4, 5), None, None, False)
    ids = [id_of(command) for command in device.fetch()]
    device.complete(ids[0])
    device.complete(ids[1])
    timer = threading.Timer(0.05, device.complete, (ids[2],))
    timer.start()
    found = numbers(0, 0, 0, 0, 0)
    assert device.rings.reap(found, None, 3, 20) == 3
    timer.join()
    assert list(found) == [1, 2, 3, 0, 0]
    device.complete(ids[3])
    assert device.rings.reap(found, None, 2, 0.01) == 1, "the time is over: what there is"
    device.complete(ids[4])
    assert device.rings.reap(found, None, 9, 3600) == 1, "no more are in flight"
    assert device.rings.reap(found, None, 9, 3600) == 0


def test_callbacks_for_several_at_once(device: Device) -> None:
    device.rings.submit(rows(3), numbers(1, 2, 3), None, None, False)
    ids = [id_of(command) for command in device.fetch()]
    device.complete(ids[0])
    seen: list[int] = []
    timers = [threading.Timer(0.05, device.complete, (each,)) for each in ids[1:]]
    timers[0].start()
    assert device.rings.each(lambda number, _: seen.append(number), 2, 20) == 2
    timers[1].start()
    assert device.rings.each(lambda number, _: seen.append(number), 5, 3600) == 1
    assert seen == [1, 2, 3]
    for timer in timers:
        timer.join()


@pytest.mark.parametrize(("least", "seconds"), [(-1, 1), (1 << 31, 1), ("x", 1), (1, -1), (1, "x")])
def test_looking_for_what_is_no_number(device: Device, least: Any, seconds: Any) -> None:
    device.rings.submit(rows(1), numbers(1), None, None, False)
    device.complete(id_of(device.fetch()[0]))
    with pytest.raises((TypeError, ArgumentError)):
        device.rings.reap(numbers(0), None, least, seconds)
    with pytest.raises(TypeError):
        device.rings.reap(numbers(0), None, 1)
    assert reap(device.rings) == [1]


def test_spinning_ends_when_something_is_there_or_the_time_is_over(device: Device) -> None:
    assert not device.rings.spin(0.01, True)
    device.rings.submit(rows(1), numbers(1), None, None, False)
    (command,) = device.fetch()
    timer = threading.Timer(0.05, device.complete, (id_of(command),))
    timer.start()
    assert device.rings.spin(20, True)
    device.rings.scan()
    assert device.rings.spin(20, True)
    assert not device.rings.spin(0.01, False)
    timer.join()
    stopping = threading.Timer(0.05, device.rings.stop)
    stopping.start()
    assert reap(device.rings) == [1]
    assert not device.rings.spin(20, True)
    stopping.join()


def test_threads_submit_and_reap_together(bar: Bar) -> None:
    device = Device(bar, entries=64)
    stop = threading.Event()
    taken: list[int] = []

    def serve() -> None:
        while not stop.is_set():
            for command in device.fetch():
                device.complete(id_of(command))

    def work(number: int) -> list[int]:
        mine: list[int] = []
        found = numbers(*[0] * 16)
        for turn in range(50):
            while not device.rings.submit(rows(3), numbers(*[number << 32 | turn] * 3), None, None, False):
                mine += found[: device.rings.reap(found, None)]
        return mine

    serving = Thread(serve)
    serving.start()
    threads = [Thread(lambda n=number: work(n)) for number in range(4)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        taken += thread.finish()  # type: ignore[arg-type]
    while device.rings.num_free < 63:
        taken += reap(device.rings)
    stop.set()
    serving.finish()
    assert sorted(taken) == sorted(number << 32 | turn for number in range(4) for turn in range(50) for _ in range(3))


class Bells:
    """Registers that can't be mapped."""

    def __init__(self) -> None:
        self.rung: list[tuple[int, int]] = []

    def write32(self, offset: int, value: int) -> None:
        if offset < 0x100:
            raise ZappedError("away")
        self.rung.append((offset, value))


def test_doorbells_may_be_any_object() -> None:
    bells = Bells()
    rings = RingPair(bytearray(256), bytearray(128), bells, 0x100, 0x104, LAYOUT)
    rings.start()
    assert rings.submit(rows(3), numbers(1, 2, 3), None, None, False)
    assert bells.rung == [(0x100, 3)]
    away = RingPair(bytearray(256), bytearray(128), bells, 0x40, 0x104, LAYOUT)
    away.start()
    with pytest.raises(ZappedError):
        away.submit(rows(3), numbers(1, 2, 3), None, None, False)
    assert away.num_free == ENTRIES - 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"entries": 1}, BoundsError, "2 entries at least"),
        ({"entries": 65537}, ArgumentError, "entries must be from 0 to 65536"),
        ({"entries": 9}, BoundsError, "9 submissions of 32 bytes need 288"),
        ({"completion_size": 3}, BoundsError, "4 bytes at least"),
        ({"id_at": 31}, BoundsError, "outside of its entry"),
        ({"done_id_at": 15}, BoundsError, "outside of its entry"),
        ({"phase_at": 13}, AlignmentError, "2-aligned"),
        ({"phase_mask": 3}, ArgumentError, "one bit"),
        ({"phase_mask": 0}, ArgumentError, "one bit"),
    ],
)
def test_layouts_that_can_not_be_are_refused(change: dict[str, int], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        RingPair(bytearray(256), bytearray(128), Bells(), 0, 4, LAYOUT | change)


def test_other_wrong_arguments(bar: Bar, device: Device) -> None:
    with pytest.raises(BoundsError):
        RingPair(bytearray(256), bytearray(128), bar.mmio, bar.size, 4, LAYOUT)
    with pytest.raises(TypeError, match="needs entries"):
        RingPair(bytearray(256), bytearray(128), bar.mmio, 0, 4, {})
    with pytest.raises(BufferError):
        RingPair(bytes(256), bytearray(128), bar.mmio, 0, 4, LAYOUT)
    with pytest.raises(BoundsError, match="3 commands, and entries for 2"):
        device.rings.submit(rows(2), numbers(1, 2, 3), None, None, False)
    with pytest.raises(BoundsError, match="row 4 of a table that has 4"):
        device.rings.submit(rows(4), numbers(0, 4), None, None, True)
    with pytest.raises(ArgumentError, match="the count"):
        device.rings.submit(rows(4), numbers(0), 2, None, False)
    with pytest.raises(BoundsError):
        device.rings.end_all(b"short")
    with pytest.raises(ArgumentError, match="stopped"):
        device.rings.reset()
    assert device.rings.num_free == ENTRIES - 1
