"""Interrupt vectors in asyncio: awaited, iterated over, cancelled, closed."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.threads import start
from vfio_user import IrqVector, PciDevice
from vfio_user.errors import BusyError, ClosedError


@pytest.fixture
def vector(pci: PciDevice) -> IrqVector:
    return pci.irqs.msix.enable(1)[0]


async def waiting(vector: IrqVector, count: int = 1) -> list[asyncio.Task[int]]:
    """Start tasks that wait, and come back when they do."""

    async def wait() -> int:
        return await vector

    tasks = [asyncio.create_task(wait()) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def test_await(pci: PciDevice, vector: IrqVector) -> None:
    async def main() -> None:
        pci.irqs.msix.trigger()
        pci.irqs.msix.trigger()
        assert await vector == 2
        (task,) = await waiting(vector)
        pci.irqs.msix.trigger()
        async with asyncio.timeout(10):
            assert await task == 1
            pci.irqs.msix.trigger()
            assert await vector.wait() == 1

    asyncio.run(main())


def test_iteration_ends_when_the_vector_is_closed(pci: PciDevice, vector: IrqVector) -> None:
    seen = 0

    async def main() -> None:
        nonlocal seen
        asyncio.get_running_loop().call_later(0.01, pci.irqs.msix.trigger)
        async for count in vector:
            seen += count
            (pci.irqs.msix.trigger if seen < 5 else pci.irqs.msix.disable)()

    with pytest.raises(ClosedError, match="MSI-X 0 was disabled"):
        asyncio.run(main())
    assert seen == 5


def test_each_interrupt_goes_to_one_task(pci: PciDevice, vector: IrqVector) -> None:
    async def main() -> None:
        tasks = await waiting(vector, 3)
        for left in (2, 1, 0):
            pci.irqs.msix.trigger()
            async with asyncio.timeout(10):
                done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            assert len(pending) == left
            tasks = list(pending)

    asyncio.run(main())


def test_timeout_and_cancellation_leave_nothing_behind(pci: PciDevice, vector: IrqVector) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(vector.wait(), 0.01)
        (task,) = await waiting(vector)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pci.irqs.msix.trigger()
        assert await vector == 1, "the interrupt was not lost with them"

    with nothing_left():
        asyncio.run(main())


def test_interrupt_that_comes_with_the_cancellation_is_kept(pci: PciDevice, vector: IrqVector) -> None:
    async def main() -> None:
        (task,) = await waiting(vector)
        pci.irqs.msix.trigger()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert vector.drain() == 1

    asyncio.run(main())


def test_one_loop_after_the_other(pci: PciDevice, vector: IrqVector) -> None:
    async def main() -> int:
        asyncio.get_running_loop().call_soon(pci.irqs.msix.trigger)
        return await vector

    assert [asyncio.run(main()) for _ in range(3)] == [1, 1, 1]


def test_two_loops_at_once_are_refused(vector: IrqVector) -> None:
    async def main() -> BaseException | None:
        (task,) = await waiting(vector)

        async def other() -> int:
            return await vector

        refused = await asyncio.to_thread(lambda: start(lambda: asyncio.run(other())).exception(10))
        task.cancel()
        return refused

    refused = asyncio.run(main())
    assert isinstance(refused, BusyError)
    assert "tasks of another event loop wait for 0000:01:00.0 MSI-X 0" in str(refused)


@pytest.mark.parametrize("in_thread", [False, True])
def test_closing_wakes_every_task_with_an_error(pci: PciDevice, vector: IrqVector, in_thread: bool) -> None:
    async def main() -> None:
        tasks = await waiting(vector, 3)
        if in_thread:
            await asyncio.to_thread(pci.irqs.msix.disable)
        else:
            pci.irqs.msix.disable()
        async with asyncio.timeout(10):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in ended] == [ClosedError] * 3, "none takes the wake-up for an interrupt"

    asyncio.run(main())


def test_descriptor_is_closed_with_the_tasks(pci: PciDevice) -> None:
    async def main() -> None:
        (vector,) = pci.irqs.msix.enable(1)
        (task,) = await waiting(vector)
        pci.irqs.msix.disable()
        with pytest.raises(ClosedError):
            await task
        with pytest.raises(ClosedError):
            await vector

    with nothing_left():
        asyncio.run(main())


def test_closing_from_a_thread_while_tasks_come_and_go(pci: PciDevice) -> None:
    async def use(vector: IrqVector) -> None:
        while True:
            try:
                await asyncio.wait_for(vector.wait(), 0.001)
            except TimeoutError:
                continue

    async def main() -> None:
        for _ in range(10):
            (vector,) = pci.irqs.msix.enable(1)
            tasks = [asyncio.create_task(use(vector)) for _ in range(3)]
            await asyncio.sleep(0.005)
            await asyncio.to_thread(pci.irqs.msix.disable)
            async with asyncio.timeout(10):
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each) for each in ended] == [ClosedError] * 3

    with nothing_left():
        asyncio.run(main())


def test_threads_and_tasks_wait_for_the_same_vector(pci: PciDevice, vector: IrqVector) -> None:
    async def main() -> None:
        (task,) = await waiting(vector)
        thread = start(lambda: vector.wait(30.0))
        time.sleep(0.02)
        await asyncio.to_thread(pci.irqs.msix.disable)
        async with asyncio.timeout(10):
            with pytest.raises(ClosedError):
                await task
        assert isinstance(thread.exception(10), ClosedError)

    asyncio.run(main())


def test_task_after_somebody_else_has_left_the_file(pci: PciDevice, vector: IrqVector) -> None:
    """A program's own reader, which comes and goes between two waits, does not make the second deaf."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        (task,) = await waiting(vector)
        pci.irqs.msix.trigger()
        assert await task == 1
        seen: list[int] = []
        loop.add_reader(vector.fileno(), lambda: seen.append(vector.drain()))
        pci.irqs.msix.trigger()
        async with asyncio.timeout(10):
            while not seen:
                await asyncio.sleep(0.001)
        loop.remove_reader(vector.fileno())
        (task,) = await waiting(vector)
        pci.irqs.msix.trigger()
        async with asyncio.timeout(10):
            assert await task == 1
        assert seen == [1]

    asyncio.run(main())


def test_interrupts_that_nobody_waits_for_do_not_wake_the_loop_again_and_again(
    pci: PciDevice, vector: IrqVector
) -> None:
    async def main() -> None:
        (task,) = await waiting(vector)
        pci.irqs.msix.trigger()
        assert await task == 1
        pci.irqs.msix.trigger()
        pci.irqs.msix.trigger()
        await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        assert not loop.remove_reader(vector.fileno()), "the loop still watches"
        assert await vector == 2

    asyncio.run(main())


def test_loops_in_two_threads_take_turns(pci: PciDevice, vector: IrqVector) -> None:
    """Each has watched the file; closing it makes both forget."""
    served, over = threading.Event(), threading.Event()
    left: list[bool] = []

    async def first() -> None:
        pci.irqs.msix.trigger()
        assert await vector == 1
        (task,) = await waiting(vector)
        pci.irqs.msix.trigger()
        assert await task == 1
        fd = vector.fileno()
        served.set()
        while not over.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        left.append(asyncio.get_running_loop().remove_reader(fd))

    async def second() -> None:
        (task,) = await waiting(vector)
        pci.irqs.msix.trigger()
        assert await task == 1
        pci.irqs.msix.disable()
        over.set()

    thread = threading.Thread(target=asyncio.run, args=(first(),))
    thread.start()
    assert served.wait(10)
    asyncio.run(second())
    thread.join(10)
    assert left == [False]


def test_wait_while_an_exception_is_dealt_with(pci: PciDevice, vector: IrqVector) -> None:
    """What came is told once, whatever the caller is in the middle of."""

    async def main() -> None:
        try:
            raise ValueError
        except ValueError:
            asyncio.get_running_loop().call_later(0.01, pci.irqs.msix.trigger)
            async with asyncio.timeout(10):
                assert await vector == 1
        assert vector.drain() == 0

    asyncio.run(main())
