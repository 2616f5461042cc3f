"""A pair of queues: one write of the tail for a batch, room that is waited for, resets that end waiting."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Iterator

import pytest

from tests.unit.igb.fake_bar import FakeBar
from tests.unit.threads import start
from vfio_user import DmaSlice, Iova, IrqVector
from vfio_user.drivers import tasks
from vfio_user.drivers.ethernet import RingFullError
from vfio_user.drivers.igb import IgbDeadlineError, IgbNotRunningError, IgbQueue, regs
from vfio_user.drivers.igb.control import IgbRegisters
from vfio_user.drivers.igb.rings import RxRing, TxRing
from vfio_user.errors import DeviceGoneError

RX_TAIL, TX_TAIL = 0xC018, 0xE018
ENTRIES = 16


class Bench:
    """A pair on memory, polled or with vectors, and a controller that the test plays."""

    def __init__(self, vectors: tuple[IrqVector | None, IrqVector | None] = (None, None)) -> None:
        self.bar = FakeBar()
        self.running = True
        self.rings = [memoryview(bytearray(ENTRIES * 16)) for _ in range(2)]
        buffers = [DmaSlice(memoryview(bytearray(ENTRIES * 2048)), Iova(n << 32)) for n in (1, 2)]
        parts = [DmaSlice(view, Iova(0)) for view in self.rings]
        rings = RxRing(parts[0], buffers[0], ENTRIES, 2048), TxRing(parts[1], buffers[1], ENTRIES, 2048)
        registers = IgbRegisters(self.bar, "igb test")  # type: ignore[arg-type]  # all that is used of a region
        self.queue = IgbQueue(0, registers, rings, vectors, self._require_running)
        self.queue.start()

    def _require_running(self) -> None:
        if not self.running:
            raise IgbNotRunningError("igb test is resetting")

    def send_all(self) -> None:
        """Report everything as sent, as the controller does."""
        for slot in range(ENTRIES):
            if struct.unpack_from("<I", self.rings[1], slot * 16 + 8)[0] & 1 << 27:
                struct.pack_into("<I", self.rings[1], slot * 16 + 12, 1)

    def arrive(self, slot: int, size: int = 60) -> None:
        struct.pack_into("<IH", self.rings[0], slot * 16 + 8, 0b11, size)

    def halt(self) -> None:
        self.running = False
        self.queue.halt()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def tails(bench: Bench, register: int) -> list[int]:
    return [value for offset, value in bench.bar.written if offset == register]


def test_a_batch_takes_one_write_of_the_tail(bench: Bench) -> None:
    bench.queue.send([bytes(60)] * 10, 1.0)
    assert tails(bench, TX_TAIL) == [10]
    bench.send_all()
    bench.queue.flush(1.0)
    assert (bench.queue.num_sent, bench.queue.tx.in_flight) == (10, 0)


def test_receiving_takes_one_write_of_the_tail(bench: Bench) -> None:
    for slot in range(5):
        bench.arrive(slot, 60 + slot)
    assert [len(frame) for frame in bench.queue.receive(100, 1.0)] == [60, 61, 62, 63, 64]
    assert tails(bench, RX_TAIL) == [15, 4]
    assert bench.queue.receive(100, 0.0) == []
    with pytest.raises(IgbDeadlineError, match=r"no frame came within 0\.02 s"):
        bench.queue.receive(100, 0.02)


def test_room_is_waited_for(bench: Bench) -> None:
    sender = start(lambda: bench.queue.send([bytes(60)] * 20, 30.0))
    while bench.queue.tx.in_flight < 15:
        time.sleep(0.001)
    bench.send_all()
    sender.result(10)
    assert sum(tails(bench, TX_TAIL)[:1]) == 15
    assert bench.queue.num_sent == 15
    assert bench.queue.tx.in_flight == 5


def test_ring_that_stays_full(bench: Bench) -> None:
    with pytest.raises(RingFullError, match="15 of 20 frames were handed over") as caught:
        bench.queue.send([bytes(60)] * 20, 0.02)
    assert caught.value.sent == 15
    with pytest.raises(RingFullError) as caught:
        bench.queue.send([bytes(60)] * 3, 0.0)
    assert caught.value.sent == 0
    with pytest.raises(IgbDeadlineError, match="15 frames are not sent"):
        bench.queue.flush(0.02)


def test_reset_ends_all_waiting_and_counts(bench: Bench) -> None:
    bench.queue.send([bytes(60)] * 10, 1.0)
    waiting = [
        start(lambda: bench.queue.send([bytes(60)] * 10, 30.0)),
        start(lambda: bench.queue.flush(30.0)),
        start(lambda: bench.queue.receive(1, 30.0)),
    ]
    time.sleep(0.05)
    assert not any(each.done() for each in waiting)
    bench.halt()
    for each in waiting:
        assert isinstance(each.exception(10), IgbNotRunningError)
    assert bench.queue.num_aborted == 15
    assert bench.queue.num_sent == 0
    bench.running = True
    bench.queue.clear()
    bench.queue.start()
    bench.queue.send([bytes(60)] * 15, 1.0)


def test_what_was_sent_before_a_reset_is_not_counted_as_aborted(bench: Bench) -> None:
    bench.queue.send([bytes(60)] * 4, 1.0)
    bench.send_all()
    bench.queue.send([bytes(60)] * 3, 1.0)
    bench.halt()
    assert (bench.queue.num_sent, bench.queue.num_aborted) == (4, 3)


def test_controller_that_is_gone_is_found_out_while_waiting(bench: Bench) -> None:
    bench.bar.values[regs.STATUS] = regs.ALL_ONES
    with pytest.raises(DeviceGoneError):
        bench.queue.receive(1, 0.5)


# -- asyncio


@pytest.fixture(params=["interrupts", "polled"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bench, list[IrqVector]]]:
    """A pair and its vectors, if it has some."""
    monkeypatch.setattr(tasks, "LOOK_EVERY", 60.0)  # nobody looks by himself
    vectors = [IrqVector(n, f"igb test {n}") for n in range(2)] if request.param == "interrupts" else []
    yield Bench((vectors[0], vectors[1]) if vectors else (None, None)), vectors
    for vector in vectors:
        vector._close()


def interrupt(vectors: list[IrqVector], number: int) -> None:
    if vectors:
        os.eventfd_write(vectors[number].fileno(), 1)


def test_tasks_send_and_receive(either: tuple[Bench, list[IrqVector]]) -> None:
    bench, vectors = either
    queue = bench.queue

    async def controller() -> None:
        await asyncio.sleep(0.01)
        bench.send_all()
        interrupt(vectors, 1)
        for slot in range(3):
            bench.arrive(slot, 60 + slot)
        interrupt(vectors, 0)
        await asyncio.sleep(0.01)
        bench.send_all()
        interrupt(vectors, 1)

    async def main() -> None:
        async with asyncio.timeout(20):
            frames, *_ = await asyncio.gather(
                queue.receive_async(100, 10.0), queue.send_async([bytes(60)] * 20, 10.0), controller()
            )
            assert [len(frame) for frame in frames] == [60, 61, 62]
            await queue.flush_async(10.0)
        assert (queue.num_sent, queue.tx.in_flight) == (20, 0)

    asyncio.run(main())


def test_tasks_have_deadlines(either: tuple[Bench, list[IrqVector]]) -> None:
    queue = either[0].queue
    with pytest.raises(IgbDeadlineError, match=r"no frame came within 0\.02 s"):
        asyncio.run(queue.receive_async(1, 0.02))
    with pytest.raises(RingFullError, match="15 of 20 frames were handed over") as caught:
        asyncio.run(queue.send_async([bytes(60)] * 20, 0.02))
    assert caught.value.sent == 15
    with pytest.raises(IgbDeadlineError, match="15 frames are not sent"):
        asyncio.run(queue.flush_async(0.02))


def test_reset_ends_tasks(either: tuple[Bench, list[IrqVector]]) -> None:
    bench, _ = either
    queue = bench.queue

    async def main() -> None:
        await queue.send_async([bytes(60)] * 10, 1.0)
        waiting = [
            asyncio.create_task(work)
            for work in (
                queue.send_async([bytes(60)] * 10, 30.0),
                queue.flush_async(30.0),
                queue.receive_async(1, 30.0),
            )
        ]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(bench.halt)
        async with asyncio.timeout(10):
            ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in ended] == [IgbNotRunningError] * 3

    asyncio.run(main())
    assert queue.num_aborted == 15


def test_a_thread_that_looks_wakes_tasks(either: tuple[Bench, list[IrqVector]]) -> None:
    """The interrupt may have been taken by it."""
    bench, _ = either

    async def main() -> None:
        task = asyncio.create_task(bench.queue.receive_async(10, 20.0))
        await asyncio.sleep(0.02)
        bench.arrive(0)
        await asyncio.to_thread(bench.queue._look)
        async with asyncio.timeout(10):
            assert await task == [bytes(60)]

    asyncio.run(main())
