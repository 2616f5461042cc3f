"""Resets of the emulated controller with commands in flight, and what the driver does when one is late."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.nvme_helpers import Find, controller, slow_disk
from vfio_user.drivers.nvme import (
    NvmeAbortedError,
    NvmeController,
    NvmeDeadlineError,
    NvmeError,
    NvmeNotRunningError,
)
from vfio_user.drivers.nvme.commands import flush, read
from vfio_user.errors import ClosedError, VfioError

BLOCK = 512


@pytest.mark.parametrize("how", ["function", "controller"])
@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_a_reset_ends_what_is_in_flight_once(vfio_device: Find, iommu_mode: str, how: str, interrupts: bool) -> None:
    with nothing_left(), controller(vfio_device, iommu_mode, io_queues=2, interrupts=interrupts) as (pci, ctrl):
        namespace, queues = ctrl.namespaces[0], ctrl.io_queues
        namespace.write(5, b"kept".ljust(BLOCK, b"\0"))
        ends: list[NvmeError | None] = []
        with pci.dma_alloc(20 * BLOCK) as buffer, slow_disk():
            commands = []
            for number in range(20):
                part = buffer[number * BLOCK : (number + 1) * BLOCK]
                commands.append(namespace.submit_read(part, 5, queue=queues[number % 2]))
                commands[-1].add_done_callback(lambda command: ends.append(command.exception()))
            if how == "function":
                pci.reset()
            else:
                ctrl.reset()
            assert len(ends) == 20
            assert all(command.done() for command in commands)
            assert all(end is None or isinstance(end, NvmeAbortedError) for end in ends)
            assert how == "controller" or any(ends)
        assert ctrl.io_queues == queues
        for queue in queues:
            assert queue.num_in_flight == 0
            assert namespace.read(5, 1, queue=queue).startswith(b"kept")
        assert len(ends) == 20


def test_resets_again_and_again(vfio_device: Find) -> None:
    with nothing_left(), controller(vfio_device) as (pci, ctrl):
        namespace = ctrl.namespaces[0]
        for turn in range(10):
            namespace.write(turn, bytes([turn]) * BLOCK)
            (pci if turn % 2 else ctrl).reset()
            assert namespace.read(turn, 1) == bytes([turn]) * BLOCK
            assert ctrl.smart().temperature_kelvin


def test_io_of_threads_over_resets(vfio_device: Find) -> None:
    """Every call either succeeds with the right data, or says by name that a reset came."""
    with controller(vfio_device, io_queues=2) as (pci, ctrl):
        namespace = ctrl.namespaces[0]
        stop = threading.Event()
        wrong: list[BaseException] = []
        counts = {"done": 0, "ended": 0}

        def work(number: int) -> None:
            data = bytes([number]) * 8 * BLOCK
            while not stop.is_set():
                try:
                    namespace.write(number * 8, data)
                    assert namespace.read(number * 8, 8) == data
                    counts["done"] += 1
                except (NvmeAbortedError, NvmeNotRunningError):
                    counts["ended"] += 1
                    time.sleep(0.01)
                except BaseException as exc:
                    wrong.append(exc)
                    return

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(6):
                time.sleep(0.2)
                (pci if turn % 2 else ctrl).reset()
        finally:
            time.sleep(0.3)
            stop.set()
            for thread in threads:
                thread.join(30)
        assert wrong == []
        assert counts["done"] > 0
        assert [queue.num_in_flight for queue in ctrl.io_queues] == [0, 0]
        assert ctrl.bounce.num_taken == 0


def test_a_task_that_waits_is_told_of_a_reset(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl), pci.dma_alloc(8 * BLOCK) as buffer, slow_disk():
        namespace = ctrl.namespaces[0]

        async def main() -> list[object]:
            commands = [namespace.submit_read(buffer[n * BLOCK :][:BLOCK], n) for n in range(8)]

            async def outcome(number: int) -> object:
                return await commands[number]

            waiting = asyncio.gather(*(outcome(n) for n in range(8)), return_exceptions=True)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(pci.reset)
            async with asyncio.timeout(10):
                return list(await waiting)

        ends = asyncio.run(main())
        assert any(isinstance(end, NvmeAbortedError) for end in ends)
        assert not [end for end in ends if isinstance(end, BaseException) and not isinstance(end, NvmeAbortedError)]


def test_a_blocking_call_that_is_late_leaves_no_command_behind(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl), pci.dma_alloc(4096) as buffer:
        namespace = ctrl.namespaces[0]
        with slow_disk():
            ctrl.io_queues[0].submit(flush(1))
            for _ in range(3):
                ctrl.io_queues[0].submit(read(1, 0, 1), buffer[:BLOCK])
            with pytest.raises(NvmeDeadlineError, match="not completed within") as caught:
                namespace.read(0, 1, timeout=0.05)
        assert caught.value.__notes__
        assert ctrl.bounce.num_taken == 0
        assert ctrl.io_queues[0].num_in_flight == 0
        assert len(namespace.read(0, 1)) == BLOCK


def test_removal_with_commands_in_flight(vfio_device: Find) -> None:
    with nothing_left(), vfio_user.open(vfio_device("nvme").address) as pci, pci.dma_alloc(4096) as buffer:
        with slow_disk(), NvmeController(pci) as ctrl:
            namespace = ctrl.namespaces[0]
            commands = [namespace.submit_read(buffer[:BLOCK], 0) for _ in range(5)]
        for command in commands:
            assert command.done()
            assert command.exception() is None or isinstance(command.exception(), NvmeError)
        with pytest.raises(NvmeNotRunningError):
            namespace.read(0, 1)


def test_a_device_that_is_closed_first(vfio_device: Find) -> None:
    with nothing_left():
        pci = vfio_user.open(vfio_device("nvme").address)
        ctrl = NvmeController(pci)
        ctrl.start()
        queue = ctrl.io_queues[0]
        pci.close()
        with pytest.raises((ClosedError, VfioError)):
            queue.submit(flush(1))
        ctrl.stop()
        assert queue.num_in_flight == 0
