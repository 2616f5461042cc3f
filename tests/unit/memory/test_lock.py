"""The memory lock: readers and writers, nesting, holders, deadlines, threads that come and go."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable

import pytest

from vfio_user.errors import LockOrderError, MemoryLockBusyError, ZappedError
from vfio_user.memory import MemoryLock, Program, read_sections

from .conftest import Bar, Thread

Spawn = Callable[[Callable[[], object]], Thread]


class Reader:
    """A thread inside of a read section, until it is let go."""

    def __init__(self, bar: Bar, spawn: Spawn) -> None:
        self._inside, self._leave = threading.Event(), threading.Event()
        self._bar = bar
        self.tid = 0
        self._thread = spawn(self._work)
        assert self._inside.wait(10)

    def _work(self) -> None:
        with self._bar.mmio.access():
            self.tid = threading.get_native_id()
            self._inside.set()
            assert self._leave.wait(20)

    def leave(self) -> None:
        self._leave.set()
        self._thread.finish()


def test_sections_nest(bar: Bar) -> None:
    assert bar.window.read_depth() == 0
    with bar.mmio.access() as outer, outer.access() as inner:
        assert inner is bar.mmio
        assert bar.window.read_depth() == 2
        assert read_sections() == 2
        inner.write32(0, 5)
        assert inner.read32(0) == 5
        assert bar.window.read_depth() == 2
    assert (bar.window.read_depth(), read_sections()) == (0, 0)


def test_a_section_that_raises_is_left(bar: Bar) -> None:
    with pytest.raises(KeyError), bar.mmio.access():
        raise KeyError
    assert bar.window.read_depth() == 0


def test_leaving_what_was_not_entered(bar: Bar, spawn: Spawn) -> None:
    with pytest.raises(LockOrderError, match="in no read section"):
        bar.window.release_read()
    bar.window.acquire_read()
    with pytest.raises(LockOrderError, match="by the thread that entered it"):
        spawn(bar.window.release_read).finish()
    bar.window.release_read()
    with pytest.raises(LockOrderError, match="does not hold"):
        bar.window.unlock_write()
    bar.window.lock_write(1)
    with pytest.raises(LockOrderError, match="does not hold"):
        spawn(bar.window.unlock_write).finish()
    bar.window.unlock_write()


def test_readers_do_not_exclude_each_other(bar: Bar, spawn: Spawn) -> None:
    readers = [Reader(bar, spawn) for _ in range(5)]
    with bar.mmio.access():
        assert bar.mmio.read32(0) == 0
        assert len(bar.window.holders()) == 6
    for reader in readers:
        reader.leave()
    assert bar.window.holders() == []


def test_a_writer_that_can_not_get_in_says_who_is_in(bar: Bar, spawn: Spawn) -> None:
    reader = Reader(bar, spawn)
    start = time.monotonic()
    with pytest.raises(
        MemoryLockBusyError, match=rf"0000:01:00\.0.*thread {reader.tid} is in a read section"
    ) as caught:
        bar.window.lock_write(0.1)
    assert 0.1 <= time.monotonic() - start < 1
    by_tid = dict(caught.value.holders)
    assert by_tid[reader.tid] >= 0.1, "held for at least as long as we waited"
    assert threading.get_native_id() not in by_tid, "we had the gate, and did not wait for ourselves"
    assert bar.mmio.read32(0) == 0, "the gate is open again"
    assert not bar.window.try_lock_write()
    assert bar.mmio.read32(0) == 0
    reader.leave()
    assert bar.window.try_lock_write()
    bar.window.unlock_write()


def test_a_writer_is_named_too(bar: Bar, spawn: Spawn) -> None:
    entered, leave = threading.Event(), threading.Event()
    tids: list[int] = []

    def write() -> None:
        with MemoryLock(bar.window).writing(1):
            tids.append(threading.get_native_id())
            entered.set()
            leave.wait(20)

    writer = spawn(write)
    assert entered.wait(10)
    with pytest.raises(MemoryLockBusyError, match="holds it for writing") as caught:
        bar.window.lock_write(0.05)
    assert [tid for tid, _ in caught.value.holders] == tids
    assert not bar.window.try_lock_write()
    with pytest.raises(MemoryLockBusyError, match="read or write a register"):
        bar.mmio.read32(0)  # has patience for a second: the writer has not zapped
    with pytest.raises(MemoryLockBusyError, match="enter a read section"):
        bar.mmio.access().__enter__()
    with pytest.raises(MemoryLockBusyError):
        bar.mmio.poll(0, 4, 0, 0, 5)
    leave.set()
    writer.finish()
    assert bar.mmio.read32(0) == 0


def test_an_accessor_waits_for_a_writer_that_does_not_zap(bar: Bar, spawn: Spawn) -> None:
    bar.window.lock_write(1)
    uses: list[Callable[[], object]] = [
        lambda: bar.mmio.read32(0),
        lambda: bar.mmio.write32(0, 0),
        lambda: bar.mmio.access().__enter__().window.release_read(),
        lambda: bar.mmio.poll(0, 4, 1, 0, 5),
        lambda: bar.mmio.run(Program([("read32", 0)])),
        lambda: bar.mmio.readinto(0, bytearray(4)),
        lambda: bar.window.wait_live(5),
    ]
    threads = [spawn(use) for use in uses]
    time.sleep(0.05)
    assert all(thread.is_alive() for thread in threads)
    bar.window.unlock_write()
    for thread in threads:
        thread.finish()


def test_who_waits_for_a_writer_fails_as_soon_as_it_zaps(bar: Bar, spawn: Spawn) -> None:
    bar.window.lock_write(1)
    uses: list[Callable[[], object]] = [
        lambda: bar.mmio.read32(0),
        lambda: bar.mmio.access().__enter__(),
        lambda: bar.mmio.poll(0, 4, 1, 1, 5),
    ]
    threads = [spawn(use) for use in uses]
    time.sleep(0.05)
    start = time.monotonic()
    bar.window.zap()
    for thread in threads:
        with pytest.raises(ZappedError):
            thread.finish()
    assert time.monotonic() - start < 0.5
    bar.window.unlock_write()


def test_the_writer_may_read_and_write_again(bar: Bar) -> None:
    bar.window.lock_write(1)
    assert bar.window.write_locked()
    bar.window.lock_write(0)
    assert bar.window.try_lock_write()
    bar.mmio.write32(0, 3)
    with bar.mmio.access() as mmio:
        assert mmio.read32(0) == 3
        assert mmio.poll(0, 4, 1, 1, 1) == 3 if read_sections() == 0 else True
        bar.window.lock_write(0)
        bar.window.unlock_write()
    assert bar.mmio.poll(0, 4, 1, 1, 1) == 3
    for _ in range(3):
        assert bar.window.write_locked()
        bar.window.unlock_write()
    assert not bar.window.write_locked()
    with pytest.raises(LockOrderError):
        bar.window.unlock_write()


def test_an_upgrade_is_refused(bar: Bar) -> None:
    with bar.mmio.access():
        for use in (lambda: bar.window.lock_write(5), bar.window.try_lock_write, bar.window.zap, bar.window.close):
            start = time.monotonic()
            with pytest.raises(LockOrderError, match=r"inside of a read section of 0000:01:00\.0"):
                use()
            assert time.monotonic() - start < 1, "refused at once"
    bar.window.zap()


def test_wrong_order_over_two_devices_is_refused(bar: Bar, make_bar: Callable[..., Bar]) -> None:
    other = make_bar(name="0000:02:00.0")
    with bar.mmio.access():
        with pytest.raises(LockOrderError, match="read section of another device"):
            other.window.lock_write(1)
        assert other.mmio.read32(0) == 0, "reading two devices is no problem"
    with MemoryLock(bar.window).writing(1):
        with pytest.raises(LockOrderError, match="LockSet"):
            other.window.lock_write(1)
        assert other.window.try_lock_write(), "trying can't deadlock"
        other.window.unlock_write()
    other.window.lock_write(1)
    other.window.unlock_write()


def test_polling_inside_of_a_section_is_refused(bar: Bar) -> None:
    with bar.mmio.access() as mmio, pytest.raises(LockOrderError, match="before polling"):
        mmio.poll(0, 4, 1, 1, 1)


def test_a_writer_gets_in_between_accesses(bar: Bar, spawn: Spawn) -> None:
    stop = threading.Event()

    def read() -> int:
        count = 0
        while not stop.is_set():
            bar.mmio.read32(0)
            count += 1
        return count

    readers = [spawn(read) for _ in range(4)]
    start, writes = time.monotonic(), 0
    while time.monotonic() - start < 0.5:
        with MemoryLock(bar.window).writing(5):
            assert bar.window.holders()[1:] == []
            writes += 1
    stop.set()
    assert all(reader.finish() for reader in readers)
    assert writes > 10


def test_exclusion(bar: Bar, spawn: Spawn) -> None:
    """Two registers that only differ while a writer has the lock are never seen to differ."""
    stop = threading.Event()
    program = Program([("read32", 0), ("read32", 4)])

    def read() -> None:
        while not stop.is_set():
            first, second = bar.mmio.run(program)
            assert first == second
            with bar.mmio.access() as mmio:
                assert mmio.read32(0) == mmio.read32(4)

    def write() -> None:
        value = 0
        while not stop.is_set():
            with MemoryLock(bar.window).writing(10):
                value += 1
                bar.mmio.write32(0, value)
                time.sleep(0)
                bar.mmio.write32(4, value)

    threads = [spawn(read), spawn(read), spawn(write), spawn(write)]
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.finish()


# -- threads


def test_more_threads_than_the_first_chunk_of_slots(bar: Bar, spawn: Spawn) -> None:
    readers = [Reader(bar, spawn) for _ in range(150)]
    holders = bar.window.holders()
    assert {tid for tid, _ in holders} == {reader.tid for reader in readers}
    with pytest.raises(MemoryLockBusyError):
        bar.window.lock_write(0.05)
    for reader in readers[:-1]:
        reader.leave()
    assert [tid for tid, _ in bar.window.holders()] == [readers[-1].tid]
    readers[-1].leave()
    bar.window.lock_write(1)
    bar.window.unlock_write()


def test_slots_of_threads_that_ended_are_used_again(bar: Bar, spawn: Spawn) -> None:
    for _ in range(500):
        spawn(lambda: bar.mmio.read32(0)).finish()
    assert bar.window.holders() == []
    bar.window.lock_write(1)
    bar.window.unlock_write()


def test_a_thread_that_ends_inside_of_a_section_leaves_it(bar: Bar, spawn: Spawn) -> None:
    spawn(bar.window.acquire_read).finish()
    bar.window.lock_write(5)
    bar.window.unlock_write()


def test_a_writer_is_woken_by_the_end_of_a_thread(bar: Bar, spawn: Spawn) -> None:
    entered = threading.Event()

    def work() -> None:
        bar.window.acquire_read()
        entered.set()
        time.sleep(0.1)

    thread = spawn(work)
    entered.wait(10)
    start = time.monotonic()
    bar.window.lock_write(10)
    assert time.monotonic() - start < 5
    bar.window.unlock_write()
    thread.finish()


def test_a_thread_that_ends_with_the_write_lock_leaves_it(bar: Bar, spawn: Spawn) -> None:
    spawn(lambda: bar.window.lock_write(1)).finish()
    deadline = time.monotonic() + 5
    while bar.window.holders() and time.monotonic() < deadline:
        time.sleep(0.001)
    bar.window.lock_write(1)
    bar.window.unlock_write()
    assert bar.mmio.read32(0) == 0


def test_a_signal_ends_a_wait(bar: Bar, spawn: Spawn) -> None:
    """A wait for readers is not deaf to Ctrl-C."""
    reader = Reader(bar, spawn)

    class Interrupted(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for wait in (lambda: bar.window.lock_write(20), lambda: bar.mmio.poll(0, 4, 1, 1, 20)):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            start = time.monotonic()
            with pytest.raises(Interrupted):
                wait()
            assert time.monotonic() - start < 5
    finally:
        signal.signal(signal.SIGALRM, old)
    assert bar.mmio.read32(0) == 0, "the gate is open again"
    reader.leave()


def test_waiting_lets_other_threads_run(bar: Bar, spawn: Spawn) -> None:
    """No wait of the lock keeps the GIL: the reader needs it to leave."""
    reader = Reader(bar, spawn)
    threading.Timer(0.1, reader.leave).start()
    bar.window.lock_write(10)
    bar.window.unlock_write()


def test_asyncio(bar: Bar) -> None:
    """Tasks of one thread share its sections; a writer in another thread waits for all of them."""

    async def task(index: int) -> int:
        with bar.mmio.access() as mmio:
            mmio.write32(4 * index, index)
            await asyncio.sleep(0.01 * (3 - index))  # left in another order than entered
            return mmio.read32(4 * index)

    async def main() -> list[int]:
        writer = asyncio.get_running_loop().run_in_executor(None, write)
        results = await asyncio.gather(*(task(index) for index in range(3)))
        await writer
        return results

    def write() -> None:
        with MemoryLock(bar.window).writing(5):
            pass

    assert asyncio.run(main()) == [0, 1, 2]
    assert bar.window.read_depth() == 0


def test_no_memory_is_lost_over_many_sections(bar: Bar) -> None:
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        with bar.mmio.access() as mmio:
            mmio.read32(0)
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_memory_lock_face(bar: Bar) -> None:
    lock = MemoryLock(bar.window)
    assert (lock.name, repr(lock)) == ("0000:01:00.0", "<MemoryLock of 0000:01:00.0>")
    with lock.reading():
        assert bar.window.read_depth() == 1
        assert [tid for tid, _ in lock.holders] == [threading.get_native_id()]
    with lock.writing(1):
        bar.window.zap()
        with pytest.raises(ZappedError), lock.reading():
            pass
        bar.window.revive(bar.fd)
    with lock.reading(wait=1):
        pass
