"""Interrupts of many vectors that are gathered for a while, and awaited."""

from __future__ import annotations

import asyncio
import select

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.device.vectors import by_vector, ring
from tests.unit.threads import eventually, start
from vfio_user import IrqPoller, IrqVector, PciDevice
from vfio_user.errors import ArgumentError, BoundsError, ClosedError, DeadlineError


@pytest.mark.parametrize("interval", [-1, float("nan"), float("inf")])
def test_intervals_that_can_not_be(interval: float) -> None:
    with pytest.raises(ArgumentError, match="not a number of seconds"):
        IrqPoller(interval=interval)


def test_batches_that_can_not_be() -> None:
    with pytest.raises(BoundsError, match="at least 1"):
        IrqPoller(interval=1, batch=0)
    with pytest.raises(ArgumentError, match="give an interval"):
        IrqPoller(batch=3)


def test_the_first_is_told_at_once_and_others_when_the_interval_ends(many: list[IrqVector]) -> None:
    first, second = many[:2]
    with IrqPoller(many, interval=3600.0) as poller:
        ring(first)
        assert poller.wait(5.0) == [(first, 1)]
        ring(first)
        waiter = start(lambda: poller.wait(3600.0))
        assert not eventually(waiter.done, 0.05), "no two wake-ups within an interval"
        ring(second)
        assert not eventually(waiter.done, 0.05)
        assert select.select([second], [], [], 0)[0], "nobody was woken to look"
        poller.close()
        assert waiter.result(10) == [(first, 1)], "what had come before is told"
        assert second.drain() == 1, "and what came later is the vector's"
    with IrqPoller(many, interval=0.01) as poller:
        for _ in range(3):
            ring(first)
            ring(second, 3)
            assert by_vector(poller.wait(5.0)) == {first: 1, second: 3}


def test_a_batch_ends_the_interval(many: list[IrqVector]) -> None:
    with IrqPoller(many, interval=3600.0, batch=5) as poller:
        ring(many[0])
        assert poller.wait(5.0) == [(many[0], 1)]
        waiter = start(lambda: poller.wait(3600.0))
        for vector in many[:4]:
            ring(vector)
        assert not eventually(waiter.done, 0.05), "four are no batch"
        ring(many[0])
        assert by_vector(waiter.result(10)) == {many[0]: 2, **dict.fromkeys(many[1:4], 1)}


def test_the_deadline_ends_the_interval(many: list[IrqVector]) -> None:
    with IrqPoller(many, interval=3600.0) as poller:
        ring(many[0])
        assert poller.wait(5.0) == [(many[0], 1)]
        ring(many[0])
        assert poller.wait(0.01) == [(many[0], 1)], "late is better than never"
        ring(many[1])
        assert poller.drain() == [(many[1], 1)]
        with pytest.raises(DeadlineError):
            poller.wait(0.01)


def test_what_was_gathered_is_told_once(many: list[IrqVector]) -> None:
    async def main() -> None:
        with IrqPoller(many, interval=3600.0, batch=5) as poller:
            ring(many[0])
            assert await poller.wait() == [(many[0], 1)]
            ring(many[0], 2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await poller.wait()
            assert poller.drain() == [(many[0], 2)]
            assert poller.drain() == []
            with pytest.raises(DeadlineError):
                poller.wait(0.01)

    asyncio.run(main())


# -- asyncio


@pytest.mark.parametrize("how", ["close", "disable"])
def test_the_end_is_noticed_within_an_interval(many: list[IrqVector], how: str) -> None:
    async def main() -> None:
        with IrqPoller(many[:1], interval=3600.0) as poller:
            ring(many[0])
            await poller.wait()
            asyncio.get_running_loop().call_later(0.02, poller.close if how == "close" else many[0]._close)
            with pytest.raises(ClosedError):
                async with asyncio.timeout(10):
                    await poller.wait()

    asyncio.run(main())


def test_await_many(many: list[IrqVector]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with IrqPoller(many) as poller:
            ring(many[3], 2)
            assert await poller.wait() == [(many[3], 2)]
            loop.call_later(0.01, ring, many[4])
            async with asyncio.timeout(10):
                assert await poller.wait() == [(many[4], 1)]
                seen = 0
                ring(many[5], 3)
                async for counts in poller:
                    seen += sum(count for _, count in counts)
                    if seen == 6:
                        break
                    ring(many[6])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await poller.wait()
            loop.call_later(0.01, poller.close)
            with pytest.raises(ClosedError, match="this poller is closed"):
                await poller.wait()

    with nothing_left():
        asyncio.run(main())


def test_await_gathered(many: list[IrqVector]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with IrqPoller(many, interval=3600.0) as poller:
            ring(many[0])
            assert await poller.wait() == [(many[0], 1)]
            ring(many[0])
            loop.call_later(0.01, ring, many[1])
            waiter = asyncio.create_task(poller._next())
            while select.select([many[1]], [], [], 0)[0] == []:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            assert select.select([many[1]], [], [], 0)[0], "nobody was woken to look"
            assert not waiter.done(), "the interval is not over"
            poller._not_before = 0.0
            poller._ring()
            async with asyncio.timeout(10):
                assert by_vector(await waiter) == {many[0]: 1, many[1]: 1}

    asyncio.run(main())


def test_await_a_batch(many: list[IrqVector]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with IrqPoller(many, interval=3600.0, batch=3) as poller:
            ring(many[0])
            assert await poller.wait() == [(many[0], 1)]
            ring(many[0], 2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await poller.wait()
            loop.call_later(0.01, ring, many[1])
            async with asyncio.timeout(10):
                assert by_vector(await poller.wait()) == {many[0]: 2, many[1]: 1}, "nothing was lost with who gave up"

    asyncio.run(main())


def test_vectors_that_go_while_a_task_waits(pci: PciDevice, vectors: tuple[IrqVector, ...]) -> None:
    async def main() -> None:
        with IrqPoller(vectors) as poller:
            asyncio.get_running_loop().call_later(0.01, pci.irqs.msix.disable)
            with pytest.raises(ClosedError, match="were disabled"):
                async with asyncio.timeout(10):
                    await poller.wait()

    asyncio.run(main())
