"""Arrays of commands: user data comes back once for each, also when the controller fails, lies, hangs or is reset."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from typing import TYPE_CHECKING

import numpy
import pytest

from tests.unit.nvme.model import BLOCK, LBA_OUT_OF_RANGE
from vfio_user.drivers.nvme import (
    NvmeController,
    NvmeDeadlineError,
    NvmeNotRunningError,
    NvmeQueueFullError,
    NvmeUnknownCompletionError,
    SubmissionEntry,
    completion_dtype,
    submission_dtype,
)
from vfio_user.drivers.nvme.commands import flush
from vfio_user.drivers.nvme.status import ABORTED_BY_HOST
from vfio_user.errors import ArgumentError, BoundsError, IovaError, ZappedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.unit.nvme.model import Model
    from vfio_user.drivers.nvme import QueuePair
    from vfio_user.pci.device import PciDevice

    Device = tuple[Model, PciDevice]
    Setting = tuple[Model, PciDevice, NvmeController]
    Array = numpy.ndarray[Any, Any]


def hold_io(qid: int, entry: SubmissionEntry) -> bool:
    return qid != 0


@pytest.fixture(params=["interrupts", "polled", "adaptive"])
def setting(device: Device, request: pytest.FixtureRequest) -> Iterator[Setting]:
    """The model, its device, and a running controller with an I/O queue of 16 entries."""
    model, pci = device
    how = {"interrupts": request.param != "polled", "adaptive": request.param == "adaptive"}
    with NvmeController(pci, io_entries=16, **how) as ctrl:
        for lba in range(1024):
            model.disk[lba * BLOCK : lba * BLOCK + 8] = lba.to_bytes(8, "little")
        yield model, pci, ctrl


def rows(*values: int) -> Array:
    return numpy.array(values, "u8")


def reap_all(queue: QueuePair, count: int) -> tuple[list[int], list[int]]:
    """Give numbers and statuses of ``count`` commands."""
    numbers, completions = numpy.zeros(count, "u8"), numpy.zeros(count, completion_dtype())
    found: list[int] = []
    statuses: list[int] = []
    while len(found) < count:
        done = queue.reap(numbers, completions, timeout=5)
        found += numbers[:done].tolist()
        statuses += (completions["status"][:done] >> 1).tolist()
    return found, statuses


def test_random_reads_keep_the_queue_full(setting: Setting) -> None:
    model, pci, ctrl = setting
    queue, order = ctrl.io_queues[0], numpy.random.default_rng(1)
    shuffle = random.Random(2)
    model.hold = hold_io
    with pci.dma_alloc(15 * BLOCK) as buffer, ctrl.namespaces[0].pieces(buffer) as pieces:
        wanted = order.integers(0, 1024, 15)
        ready = rows(*range(15))
        pieces.read(ready, wanted)
        queue.submit_rows(pieces.table, ready, keep=pieces)
        total, number = 0, numpy.zeros(15, "u8")
        while total < 1500:
            model.release(shuffle)
            count = queue.reap(number, timeout=5)
            done = number[:count].astype(int)
            assert [int.from_bytes(pieces[n][:8], "little") for n in done] == wanted[done].tolist()
            total += count
            wanted[done] = order.integers(0, 1024, count)
            pieces.read(done, wanted[done])
            queue.submit_rows(pieces.table, number, count, keep=pieces)
        model.hold = lambda qid, entry: False
        model.release()
        reap_all(queue, 15)
    assert (queue.num_in_flight, queue.num_failed) == (0, 0)


def test_pieces_of_many_pages_are_written_and_read_back(setting: Setting) -> None:
    model, pci, ctrl = setting
    namespace, queue = ctrl.namespaces[0], ctrl.io_queues[0]
    data = random.Random(3).randbytes(20 * 17 * BLOCK)
    with pci.dma_alloc(len(data)) as memory, namespace.pieces(memory[: len(data)].array(), 17) as pieces:
        buffer = memory[: len(data)]
        assert (len(pieces), pieces.size) == (20, 17 * BLOCK)
        buffer[:] = data
        which = rows(*range(19, -1, -1))
        pieces.write(which, 100 + 17 * which)
        assert (pieces.run(which, queue=queue)["status"] >> 1 == 0).all()
        assert model.disk[100 * BLOCK : 440 * BLOCK] == data
        buffer[:] = bytes(len(data))
        pieces.read(slice(None), 100 + 17 * numpy.arange(20))
        pieces.run(numpy.arange(20), queue=queue)
        assert bytes(buffer) == data
    assert queue.num_in_flight == 0


def test_errors_come_with_the_command_that_has_them(setting: Setting) -> None:
    model, pci, ctrl = setting
    queue = ctrl.io_queues[0]
    model.status = lambda qid, entry: LBA_OUT_OF_RANGE if qid and entry.cdw10 == 7 else 0
    with pci.dma_alloc(8 * BLOCK) as buffer, ctrl.namespaces[0].pieces(buffer) as pieces:
        which = rows(5, 3, 1)
        pieces.read(which, [6, 7, 8])
        queue.submit_rows(pieces.table, which)
        found = dict(zip(*reap_all(queue, 3), strict=True))
        assert found == {5: 0, 3: LBA_OUT_OF_RANGE, 1: 0}
        assert queue.num_failed == 1
        pieces.run(which, queue=queue)
        assert queue.num_failed == 2


def test_callbacks_for_each(setting: Setting) -> None:
    _, _, ctrl = setting
    queue = ctrl.io_queues[0]
    seen: list[tuple[int, int]] = []
    entries = numpy.zeros(4, submission_dtype())
    entries["nsid"] = 1
    entries[2]["opcode"] = 0x99
    queue.submit_batch(entries, rows(10, 11, 12, 13))
    deadline = time.monotonic() + 5
    while len(seen) < 4 and time.monotonic() < deadline:
        queue.reap_each(lambda number, status: seen.append((number, status >> 1)))
    assert seen == [(10, 0), (11, 0), (12, 0x4001), (13, 0)]


def test_arrays_and_commands_are_in_flight_together(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    queue.submit_batch(flush(1).pack() * 3, rows(1, 2, 3))
    command = queue.submit(flush(1))
    model.release(random.Random(4))
    assert command.wait(5).ok
    assert reap_all(queue, 3)[1] == [0, 0, 0]
    command = queue.submit(flush(1))
    queue.submit_batch(flush(1).pack(), rows(4))
    model.release()
    assert reap_all(queue, 1) == ([4], [0])
    assert command.wait(5).ok


def test_a_full_queue_takes_none_of_them(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    queue.submit_batch(flush(1).pack() * 10, rows(*range(10)))
    with pytest.raises(NvmeQueueFullError, match="room for 5 more commands, not 6"):
        queue.submit_batch(flush(1).pack() * 6, rows(*range(6)))
    with pytest.raises(NvmeQueueFullError, match="not 6"):
        queue.submit_rows(flush(1).pack(), rows(*[0] * 16), 6)
    assert len(model.held) == 10
    model.release()
    # What is done and was not reaped still takes room: nothing is thrown away.
    queue.poll()
    assert queue.num_free == 5
    reap_all(queue, 10)
    assert queue.num_free == 15


def test_a_stray_completion_is_named_and_nothing_else_is_lost(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    queue.submit_batch(flush(1).pack() * 2, rows(1, 2))
    first = model.held.pop(0)
    model.complete(1, first[1].command_id)
    model.complete(1, first[1].command_id)
    assert reap_all(queue, 1) == ([1], [0])
    with pytest.raises(NvmeUnknownCompletionError, match=f"{first[1].command_id:#x}"):
        queue.reap(rows(0), timeout=1)
    with pytest.raises(NvmeUnknownCompletionError, match=r"reset\(\)"):
        queue.submit_batch(flush(1).pack(), rows(3))
    ctrl.reset()
    assert reap_all(queue, 1) == ([2], [ABORTED_BY_HOST])
    model.hold = lambda qid, entry: False
    queue.submit_batch(flush(1).pack(), rows(4))
    assert reap_all(queue, 1) == ([4], [0])


def test_what_a_reset_ends_comes_out_as_aborted(setting: Setting) -> None:
    model, pci, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    queue.submit_batch(flush(1).pack() * 5, rows(1, 2, 3, 4, 5))
    _, answered = model.held.pop(2)
    model.complete(1, answered.command_id)
    pci.reset()
    assert dict(zip(*reap_all(queue, 5), strict=True)) == dict.fromkeys((1, 2, 4, 5), ABORTED_BY_HOST) | {3: 0}
    assert queue.reap(rows(0)) == 0
    assert queue.num_in_flight == 0


def test_nothing_goes_out_while_the_memory_is_away_or_the_driver_stopped(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.zapped = True
    with pytest.raises(ZappedError):
        queue.submit_batch(flush(1).pack(), rows(1))
    model.zapped = False
    assert queue.num_in_flight == 0
    ctrl.reset_prepare()
    with pytest.raises(NvmeNotRunningError, match="being reset"):
        queue.submit_batch(flush(1).pack(), rows(1))
    ctrl.reset_done()
    queue.submit_batch(flush(1).pack(), rows(1))
    assert reap_all(queue, 1) == ([1], [0])


@pytest.mark.parametrize("aborts", [True, False], ids=["aborts", "ignores aborts"])
def test_a_device_that_stops_answering_is_aborted_or_reset(
    setting: Setting, aborts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_user.drivers.nvme.controller._ABORT_GRACE", 0.3)
    model, pci, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold, model.aborts = lambda qid, entry: qid != 0 and entry.cdw10 > 3, aborts
    with pci.dma_alloc(4096) as buffer, ctrl.namespaces[0].pieces(buffer[: 6 * BLOCK]) as pieces:
        pieces.read(slice(None), range(6))
        with pytest.raises(NvmeDeadlineError, match=r"within 0\.1 s") as caught:
            pieces.run(range(6), queue=queue, timeout=0.1)
        (note,) = caught.value.__notes__
        assert ("aborted" in note) is aborts
        assert ("reset" in note) is not aborts
        assert queue.num_in_flight == 0
        model.hold = lambda qid, entry: False
        assert (pieces.run(range(6), queue=queue)["status"] >> 1 == 0).all()
        assert [int.from_bytes(pieces[n][:8], "little") for n in range(6)] == list(range(6))


def test_reaping_has_a_deadline_and_keeps_what_is_in_flight(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    queue.submit_batch(flush(1).pack(), rows(1))
    with pytest.raises(NvmeDeadlineError, match="completed nothing within"):
        queue.reap(rows(0), timeout=0.05)
    assert queue.reap(rows(0)) == 0
    threading.Timer(0.1, model.release).start()
    assert reap_all(queue, 1) == ([1], [0])


def test_a_thread_that_waits_is_woken_by_one_that_polls(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    queue.submit_batch(flush(1).pack(), rows(1))
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(reap_all(queue, 1)))
    thread.start()
    time.sleep(0.02)
    vectors, model.vectors = model.vectors, {}  # the interrupt is lost
    model.release()
    while thread.is_alive():
        queue.poll()
        thread.join(0.001)
    model.vectors = vectors
    assert found == [([1], [0])]


def test_tasks_reap(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io

    async def one() -> list[int]:
        numbers = rows(0, 0)
        count = await queue.reap_async(numbers, timeout=5)
        return [int(number) for number in numbers[:count]]

    async def main() -> None:
        queue.submit_batch(flush(1).pack() * 4, rows(1, 2, 3, 4))
        waiting = [asyncio.create_task(one()) for _ in range(2)]
        await asyncio.sleep(0.02)
        model.release()
        found = await asyncio.gather(*waiting)
        assert sorted(itertools.chain(*found)) == [1, 2, 3, 4]
        with pytest.raises(NvmeDeadlineError):
            await queue.reap_async(rows(0), timeout=0.02)
        queue.submit_batch(flush(1).pack(), rows(5))
        waiting = [asyncio.create_task(one())]
        await asyncio.sleep(0.02)
        await asyncio.to_thread(ctrl.reset)
        assert await waiting[0] == [5]

    asyncio.run(main())
    assert queue._tasks._sleepers == {}
    assert queue._waiter._listeners == []


def test_pieces_that_can_not_be_are_refused(setting: Setting) -> None:
    _, pci, ctrl = setting
    namespace, queue = ctrl.namespaces[0], ctrl.io_queues[0]
    with pytest.raises(IovaError, match="dma_alloc"):
        namespace.pieces(bytearray(4096))
    with pci.dma_alloc(1 << 20) as buffer:
        with pytest.raises(BoundsError, match="at most"):
            namespace.pieces(buffer, 1024)
        with pytest.raises(BoundsError, match="has no piece"):
            namespace.pieces(buffer[:BLOCK], 2)
        with namespace.pieces(buffer, 2) as pieces:
            with pytest.raises(BoundsError, match="not all inside"):
                pieces.read([0], [namespace.num_blocks - 1])
            with pytest.raises(BoundsError, match="not all inside"):
                pieces.write([0], [-1])
            with pytest.raises(ArgumentError, match="integers"):
                pieces.read([0], [1.5])
            with pytest.raises(BoundsError, match="don't fit"):
                pieces.read([0, len(pieces)], [1, 2])
            with pytest.raises(BoundsError, match="different"):
                pieces.run([1, 1], queue=queue)
            with pytest.raises(BoundsError, match="row 1024 of a table"):
                queue.submit_rows(pieces.table, rows(1024))
            with pytest.raises(BoundsError):
                pieces[1024]
            assert "1024 bytes" in repr(pieces)
    assert queue.num_in_flight == 0
