"""Waiting for a queue pair: threads and tasks that share it."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vfio_user.drivers.nvme import (
    NvmeAbortedError,
    NvmeController,
    NvmeDeadlineError,
    NvmeStatusError,
    NvmeUnknownCompletionError,
    SubmissionEntry,
)
from vfio_user.drivers.nvme.commands import flush
from vfio_user.errors import ArgumentError

if TYPE_CHECKING:
    from tests.unit.nvme.model import Model
    from vfio_user.pci.device import PciDevice

    Device = tuple[Model, PciDevice]
    Setting = tuple[Model, PciDevice, NvmeController]


def hold_io(qid: int, entry: SubmissionEntry) -> bool:
    return qid != 0


def test_threads_share_a_queue(setting: Setting) -> None:
    model, _, ctrl = setting
    namespace = ctrl.namespaces[0]
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(25):
                data = bytes([number, turn]) * 1024
                namespace.write(number * 8, data)
                assert namespace.read(number * 8, 4) == data
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    order = random.Random(3)
    while any(thread.is_alive() for thread in threads):
        with queue._lock:  # the model is not thread-safe against submissions
            model.release(order)
        time.sleep(0.0002)
    assert errors == []
    assert queue.num_in_flight == 0


def test_a_thread_that_polls_wakes_one_that_sleeps(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io
    command = queue.submit(flush(1))
    thread = threading.Thread(target=command.wait)
    thread.start()
    time.sleep(0.05)
    vectors, model.vectors = model.vectors, {}  # the interrupt is lost
    model.release()
    begin = time.monotonic()
    while not command.done():
        queue.poll()
    thread.join(5)
    assert time.monotonic() - begin < 0.2
    model.vectors = vectors


def test_a_lost_interrupt_only_costs_time(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        vectors, model.vectors = model.vectors, {}
        assert ctrl.io_queues[0].execute(flush(1), timeout=5).ok
        model.vectors = vectors


def test_negative_timeouts_are_refused(setting: Setting) -> None:
    _, _, ctrl = setting
    command = ctrl.io_queues[0].submit(flush(1))
    with pytest.raises(ArgumentError, match="negative"):
        command.wait(-1)
    for endless in (math.inf, math.nan):
        with pytest.raises(ArgumentError, match="never ends"):
            command.wait(endless)
    command.wait()


# -- asyncio


def test_tasks_share_a_queue(setting: Setting) -> None:
    model, pci, ctrl = setting
    queue, namespace = ctrl.io_queues[0], ctrl.namespaces[0]
    model.disk[:] = random.Random(4).randbytes(len(model.disk))
    model.hold = hold_io

    async def one(number: int) -> None:
        with pci.dma_alloc(4096) as buffer:
            for turn in range(5):
                lba = number * 7 + turn
                await namespace.submit_read(buffer[:512], lba)
                assert bytes(buffer.view[:512]) == model.disk[lba * 512 : lba * 512 + 512]

    async def answer() -> None:
        order = random.Random(5)
        while True:
            model.release(order)
            await asyncio.sleep(0.001)

    async def main() -> None:
        answering = asyncio.create_task(answer())
        await asyncio.gather(*(one(number) for number in range(14)))
        answering.cancel()

    asyncio.run(main())
    assert queue.num_in_flight == 0
    assert queue._tasks._sleepers == {}


def test_await_raises_what_happened(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]

    async def main() -> None:
        model.status = lambda qid, entry: 0x4080
        with pytest.raises(NvmeStatusError, match="LBA Out of Range"):
            await queue.submit(flush(1))
        model.hold, model.status = hold_io, lambda qid, entry: 0
        late = queue.submit(flush(1))
        with pytest.raises(NvmeDeadlineError):
            await queue.wait_async([late], 0.02)
        waiting = asyncio.create_task(queue.wait_async([late]))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(ctrl.reset)
        await waiting
        with pytest.raises(NvmeAbortedError):
            await late
        cancelled = queue.submit(flush(1))
        task = asyncio.create_task(queue.wait_async([cancelled]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        model.release()
        assert (await cancelled).ok

    asyncio.run(main())
    assert queue._tasks._sleepers == {}


def test_an_unknown_completion_reaches_tasks(setting: Setting) -> None:
    model, _, ctrl = setting
    queue = ctrl.io_queues[0]
    model.hold = hold_io

    async def main() -> None:
        command = queue.submit(flush(1))
        asyncio.get_running_loop().call_later(0.02, model.complete, 1, 0x0F0F)
        with pytest.raises(NvmeUnknownCompletionError):
            await command

    asyncio.run(main())


def test_large_transfers_of_tasks(setting: Setting) -> None:
    model, pci, ctrl = setting
    namespace = ctrl.namespaces[0]
    model.disk[:] = random.Random(6).randbytes(len(model.disk))

    async def main() -> None:
        with pci.dma_alloc(4 << 20) as buffer:
            await asyncio.gather(
                namespace.read_into_async(buffer[: 3 << 20], 5),
                namespace.read_into_async(buffer[3 << 20 :], 9),
            )
            assert bytes(buffer.view[: 3 << 20]) == model.disk[5 * 512 : 5 * 512 + (3 << 20)]
            assert bytes(buffer.view[3 << 20 :]) == model.disk[9 * 512 : 9 * 512 + (1 << 20)]
            await namespace.write_from_async(buffer[: 1 << 20], 100)
            assert model.disk[51200 : 51200 + (1 << 20)] == bytes(buffer.view[: 1 << 20])

    asyncio.run(main())
