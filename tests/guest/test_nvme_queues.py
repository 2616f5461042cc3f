"""Many commands in flight on the emulated controller: threads, tasks, several queues, full queues."""

from __future__ import annotations

import asyncio
import random
import threading

import numpy
import pytest

from tests.guest.leaks import nothing_left
from tests.guest.nvme_helpers import Find, controller, slow_disk
from vfio_user import IrqPoller
from vfio_user.drivers.nvme import (
    Command,
    NvmeDeadlineError,
    NvmeQueueFullError,
    NvmeUnsupportedError,
    completion_dtype,
)
from vfio_user.drivers.nvme.commands import flush, read
from vfio_user.drivers.nvme.status import ABORTED_BY_HOST
from vfio_user.errors import ArgumentError

BLOCK = 512


def numbered(num_blocks: int) -> bytes:
    """Blocks that say which they are."""
    return b"".join(lba.to_bytes(8, "little") * (BLOCK // 8) for lba in range(num_blocks))


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_thousands_in_flight(vfio_device: Find, iommu_mode: str, interrupts: bool) -> None:
    options = {"io_entries": 1024, "interrupts": interrupts}
    with nothing_left(), controller(vfio_device, iommu_mode, **options) as (pci, ctrl):
        namespace, queue = ctrl.namespaces[0], ctrl.io_queues[0]
        namespace.write(0, numbered(4096))
        order = random.Random(8)
        with pci.dma_alloc(1023 * BLOCK) as buffer:
            for _ in range(4):
                lbas = [order.randrange(4096) for _ in range(1023)]
                parts = [buffer[n * BLOCK : n * BLOCK + BLOCK] for n in range(1023)]
                commands = queue.submit_many([(read(1, lba, 1), part) for lba, part in zip(lbas, parts, strict=True)])
                assert len({command.command_id for command in commands}) == 1023
                with pytest.raises(NvmeQueueFullError, match="0 more commands"):
                    queue.submit(flush(1))
                queue.wait(commands)
                found = [int.from_bytes(part.view[:8], "little") for part in parts]
                assert found == lbas
        assert (queue.num_in_flight, queue.num_free) == (0, 1023)


def test_each_command_is_accounted_for_once(vfio_device: Find) -> None:
    with controller(vfio_device, interrupts=False) as (pci, ctrl), pci.dma_alloc(4096) as buffer:
        queue = ctrl.io_queues[0]
        seen: dict[Command, int] = {}

        def count(command: Command) -> None:
            seen[command] = seen.get(command, 0) + 1

        submitted = taken = 0
        while submitted < 2000:
            for _ in range(min(queue.num_free, 2000 - submitted)):
                queue.submit(read(1, submitted, 1), buffer[:BLOCK]).add_done_callback(count)
                submitted += 1
            taken += queue.poll()
        while queue.num_in_flight:
            taken += queue.poll()
        assert taken == len(seen) == submitted == sum(seen.values())


def test_threads_over_queues(vfio_device: Find) -> None:
    with nothing_left(), controller(vfio_device, io_queues=2, io_entries=8) as (_, ctrl):
        namespace = ctrl.namespaces[0]
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                pattern = random.Random(number)
                for turn in range(4):
                    data = pattern.randbytes(24 * BLOCK)
                    namespace.write(number * 100 + turn, data)
                    assert namespace.read(number * 100 + turn, 24) == data
            except BaseException as exc:
                errors.append(exc)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert errors == []
        assert [queue.num_in_flight for queue in ctrl.io_queues] == [0, 0]


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_tasks(vfio_device: Find, interrupts: bool) -> None:
    with controller(vfio_device, interrupts=interrupts) as (pci, ctrl), pci.dma_alloc(1 << 20) as buffer:
        namespace = ctrl.namespaces[0]
        namespace.write(0, numbered(2048))

        async def one(number: int) -> None:
            part = buffer[number * BLOCK : (number + 1) * BLOCK]
            for turn in range(4):
                lba = number * 30 + turn
                completion = await namespace.submit_read(part, lba)
                assert completion.ok
                assert int.from_bytes(part.view[:8], "little") == lba

        async def main() -> None:
            async with asyncio.timeout(40):
                await asyncio.gather(*(one(number) for number in range(60)))
                await namespace.read_into_async(buffer, lba=0)
            assert bytes(buffer.view) == numbered(2048)

        asyncio.run(main())


def test_one_thread_serves_many_queues(vfio_device: Find, iommu_mode: str) -> None:
    """A busy device wakes it once for many completions, and every command is accounted for."""
    depth, each = 32, 500
    with (
        nothing_left(),
        controller(vfio_device, iommu_mode, io_queues=4, io_entries=2 * depth) as (pci, ctrl),
        pci.dma_alloc(depth * BLOCK) as buffer,
    ):
        namespace, queues = ctrl.namespaces[0], {queue.vector: queue for queue in ctrl.io_queues}
        with (
            namespace.pieces(buffer, 1) as pieces,
            IrqPoller((vector for vector in queues if vector is not None), interval=0.002) as poller,
        ):
            pieces.read(slice(None), numpy.arange(depth))
            rows = numpy.arange(depth, dtype="u8")
            submitted, seen = dict.fromkeys(queues, depth), {vector: numpy.zeros(depth, int) for vector in queues}
            for queue in queues.values():
                queue.submit_rows(pieces.table, rows, keep=pieces)
            wakeups = interrupts = 0
            while any(counts.sum() < each for counts in seen.values()):
                found = poller.wait(60)
                wakeups += 1
                for vector, count in found:
                    interrupts += count
                    while done := queues[vector].reap(rows):  # until there is no more
                        numpy.add.at(seen[vector], rows[:done], 1)
                        again = min(done, each - submitted[vector])
                        queues[vector].submit_rows(pieces.table, rows, again, keep=pieces)
                        submitted[vector] += again
            assert [counts.sum() for counts in seen.values()] == [each] * 4
            assert all(counts.min() >= 1 for counts in seen.values())
            assert wakeups < 4 * each
            assert wakeups <= interrupts <= 4 * each
        assert [queue.num_failed for queue in queues.values()] == [0] * 4


def test_a_controller_that_gathers_no_interrupts(vfio_device: Find) -> None:
    """QEMU's says so; what it has can be asked."""
    with controller(vfio_device) as (_, ctrl):
        assert ctrl.interrupt_coalescing().delay == 0
        assert not ctrl.vector_coalescing(0), "the admin queue's interrupts are never gathered"
        assert ctrl.vector_coalescing(1)
        with pytest.raises(NvmeUnsupportedError, match="Feature Not Changeable"):
            ctrl.set_interrupt_coalescing(threshold=8, delay=0.001)
        with pytest.raises(NvmeUnsupportedError, match="Feature Not Changeable"):
            ctrl.set_vector_coalescing(1, False)
        ctrl.reset()
        assert ctrl.namespaces[0].read(0, 8)


def test_queues_come_and_go_beside_others(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl):
        namespace = ctrl.namespaces[0]
        first = ctrl.io_queues[0]
        polled = ctrl.create_io_queue(entries=4, interrupts=False)
        assert len(namespace.read(0, 64, queue=polled)) == 64 * BLOCK
        ctrl.delete_io_queue(polled)
        with pytest.raises(ArgumentError, match="no I/O queue"):
            ctrl.delete_io_queue(polled)
        again = ctrl.create_io_queue(entries=16, interrupts=False)
        assert again.qid == polled.qid
        assert len(namespace.read(0, 64, queue=again)) == 64 * BLOCK
        assert len(namespace.read(0, 64, queue=first)) == 64 * BLOCK
        assert len(pci.irqs.msix.vectors) == 2


def test_a_late_command_can_be_waited_for_again(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl), pci.dma_alloc(4096) as buffer:
        namespace = ctrl.namespaces[0]
        with slow_disk():
            commands = [namespace.submit_read(buffer[:BLOCK], 0) for _ in range(3)]
            with pytest.raises(NvmeDeadlineError, match="wait\\(\\) again"):
                commands[-1].wait(0.1)
            assert not commands[-1].done()
        for command in commands:
            assert command.wait(20).ok


@pytest.mark.parametrize("how", ["interrupts", "polled", "adaptive"])
def test_arrays_under_load(vfio_device: Find, iommu_mode: str, how: str) -> None:
    """Random reads and writes that keep a queue full, every block checked."""
    options = {"io_entries": 65, "interrupts": how != "polled", "adaptive": how == "adaptive"}
    with nothing_left(), controller(vfio_device, iommu_mode, **options) as (pci, ctrl):
        namespace, queue = ctrl.namespaces[0], ctrl.io_queues[0]
        order = numpy.random.default_rng(9)
        with pci.dma_alloc(64 * 4096) as buffer, namespace.pieces(buffer, 8) as pieces:
            blocks = buffer.array("u8", (64, 512))
            every = numpy.arange(64, dtype="u8")
            lbas = every * 8
            pieces.write(every, lbas)
            blocks[:] = lbas[:, None]
            assert not (pieces.run(every, queue=queue)["status"] >> 1).any()
            pieces.read(every, lbas)
            queue.submit_rows(pieces.table, every, keep=pieces)
            rows = numpy.zeros(64, "u8")
            total = 0
            while total < 1500:
                count = queue.reap(rows, timeout=20)
                done = rows[:count].astype(int)
                assert (blocks[done] == lbas[done][:, None]).all()
                total += count
                lbas[done] = order.integers(0, 64, count) * 8
                pieces.read(done, lbas[done])
                queue.submit_rows(pieces.table, rows, count, keep=pieces)
            while queue.num_in_flight:
                queue.reap(rows, timeout=20)
            assert queue.num_failed == 0


def test_a_reset_ends_arrays(vfio_device: Find) -> None:
    with nothing_left(), controller(vfio_device) as (pci, ctrl), pci.dma_alloc(16 * BLOCK) as buffer:
        queue = ctrl.io_queues[0]
        with ctrl.namespaces[0].pieces(buffer) as pieces:
            rows = numpy.arange(16, dtype="u8")
            pieces.read(rows, rows)
            with slow_disk():
                queue.submit_rows(pieces.table, rows, keep=pieces)
                pci.reset()
            completions = numpy.zeros(16, completion_dtype())
            assert queue.reap(rows, completions, timeout=5) == 16
            assert sorted(rows.tolist()) == list(range(16))
            assert (completions["status"] >> 1 == ABORTED_BY_HOST).any()
            assert queue.num_in_flight == 0
            assert not (pieces.run(rows, queue=queue)["status"] >> 1).any()


def test_an_array_that_is_late_is_ended(vfio_device: Find) -> None:
    with nothing_left(), controller(vfio_device) as (pci, ctrl), pci.dma_alloc(16 * BLOCK) as buffer:
        queue = ctrl.io_queues[0]
        with ctrl.namespaces[0].pieces(buffer) as pieces:
            with slow_disk(), pytest.raises(NvmeDeadlineError) as caught:
                pieces.run(range(16), queue=queue, timeout=0.1)
            assert caught.value.__notes__
            assert queue.num_in_flight == 0
            assert not (pieces.run(range(16), queue=queue)["status"] >> 1).any()
