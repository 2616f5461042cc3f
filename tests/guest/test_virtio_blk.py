"""The emulated virtio block device, behind the IOMMU."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.net_helpers import PATIENCE, Find
from vfio_user import PciDevice
from vfio_user.drivers.resettable import DriverState
from vfio_user.drivers.virtio import (
    Feature,
    VirtioAbortedError,
    VirtioBlk,
    VirtioDeadlineError,
    VirtioNotRunningError,
    VirtioQueueFullError,
    VirtioRng,
    VirtioStatusError,
    VirtioUnsupportedError,
)
from vfio_user.errors import AlignmentError, BoundsError
from vfio_user.pci import Command
from vfio_user.testing import hmp

SECTOR = 512
SIZE = 64 << 20


@contextlib.contextmanager
def disk(find: Find, mode: str = "auto", **options: object) -> Iterator[VirtioBlk]:
    with (
        vfio_user.open(find("virtio-blk").address, mode=mode) as pci,
        VirtioBlk(pci, timeout=PATIENCE, **options) as disk,  # type: ignore[arg-type]  # the tests' own keywords
    ):
        yield disk


@contextlib.contextmanager
def slow(pci: PciDevice) -> Iterator[None]:
    """Let the emulated disk do one request a second, so that requests stay in flight."""
    _throttle(1)
    try:
        yield
    finally:
        _throttle(0)


def _throttle(requests_per_second: int) -> None:
    answer = hmp(f"block_set_io_throttle virtio-blk0/virtio-backend 0 0 0 {requests_per_second} 0 0")
    assert not answer.strip(), answer


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_what_is_written_is_read(vfio_device: Find, iommu_mode: str, interrupts: bool) -> None:
    with nothing_left(), disk(vfio_device, iommu_mode, interrupts=interrupts) as blk:
        assert blk.capacity == SIZE // SECTOR
        assert blk.features & Feature.ACCESS_PLATFORM
        assert not blk.read_only
        chance = random.Random(blk.capacity)
        for sector, count in ((0, 1), (7, 9), (blk.capacity - 1, 1), (1000, 2048)):
            data = chance.randbytes(count * SECTOR)
            blk.write(sector, data)
            assert blk.read(sector, count) == data
        blk.flush()
    assert blk.state is DriverState.STOPPED


@pytest.mark.parametrize("queue_size", [4, 8, 256])
def test_several_in_flight(vfio_device: Find, queue_size: int) -> None:
    with disk(vfio_device, queue_size=queue_size) as blk, blk.pci.dma_alloc(4 << 20) as buffer:
        data = random.Random(queue_size).randbytes(len(buffer))
        buffer[:] = data
        blk.write_from(buffer, 4096)
        buffer[:] = bytes(len(buffer))
        blk.read_into(buffer, 4096)
        assert buffer.view == data
        buffer[:] = bytes(len(buffer))
        pieces = range(blk._service.queue.size // 3)
        requests = [blk.submit_read(buffer[n * 4096 : (n + 1) * 4096], 4096 + n * 8) for n in pieces]
        for request in reversed(requests):
            request.wait()
        assert blk.num_in_flight == 0
        assert buffer.view[: len(pieces) * 4096] == data[: len(pieces) * 4096]


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_tasks(vfio_device: Find, interrupts: bool) -> None:
    with (
        nothing_left(),
        disk(vfio_device, interrupts=interrupts) as blk,
        blk.pci.dma_alloc(4 << 20) as source,
        blk.pci.dma_alloc(4 << 20) as target,
    ):
        source[:] = random.Random(5).randbytes(len(source))

        async def one(number: int) -> None:
            for turn in range(4):
                part = target[number * SECTOR : (number + 1) * SECTOR]
                place = number * 30 + turn
                await blk.submit_read(part, 4096 + place)
                assert part.view == source.view[place * SECTOR : (place + 1) * SECTOR]

        async def main() -> None:
            async with asyncio.timeout(PATIENCE):
                await blk.write_from_async(source, 4096)
                await asyncio.gather(*(one(number) for number in range(40)))
                await blk.read_into_async(target, 4096)
            assert target.view == source.view
            with slow(blk.pci):
                requests = [blk.submit_read(target[:SECTOR], 0) for _ in range(3)]
                with pytest.raises(VirtioDeadlineError, match="still in flight"):
                    await blk.read_into_async(target, 0, timeout=0.05)
            for request in requests:
                await request

        asyncio.run(main())
        with pytest.raises(BoundsError):
            asyncio.run(blk.read_into_async(target, blk.capacity))
        deadline = time.monotonic() + PATIENCE
        while blk.num_in_flight:
            assert time.monotonic() < deadline
            blk._service.poll()


def test_queue_that_is_full(vfio_device: Find) -> None:
    with disk(vfio_device, queue_size=8) as blk, blk.pci.dma_alloc(4096) as buffer:
        with slow(blk.pci):
            requests = [blk.submit_read(buffer[:SECTOR], 0) for _ in range(8)]
            with pytest.raises(VirtioQueueFullError, match="8 requests are in flight; wait for one first"):
                blk.submit_read(buffer[:SECTOR], 0)
            with pytest.raises(VirtioDeadlineError, match="still in flight"):
                requests[-1].wait(0.05)
        for request in requests:
            request.wait()
        assert blk.num_in_flight == 0


def test_discard_zeroes_and_identity(vfio_device: Find) -> None:
    with disk(vfio_device) as blk:
        blk.write(0, b"\x5a" * 64 * SECTOR)
        blk.write_zeroes(8, 8)
        blk.discard(16, 8)
        data = blk.read(0, 64)
        assert data[: 8 * SECTOR] == b"\x5a" * 8 * SECTOR
        assert data[8 * SECTOR : 16 * SECTOR] == bytes(8 * SECTOR)
        assert data[24 * SECTOR :] == b"\x5a" * 40 * SECTOR
        blk.flush()
        assert blk.get_id() == "VU-virtio-blk0"


def test_requests_that_can_not_be(vfio_device: Find) -> None:
    with disk(vfio_device) as blk, blk.pci.dma_alloc(2 << 20) as buffer:
        for sector, count in ((-1, 1), (blk.capacity, 1), (0, blk.capacity + 1), (0, 0)):
            with pytest.raises(BoundsError, match=f"has {blk.capacity}"):
                blk.read(sector, count)
        for size in (1, 511, 513):
            with pytest.raises(AlignmentError, match="no whole sectors"):
                blk.write(0, bytes(size))
            with pytest.raises(AlignmentError, match="no whole sectors"):
                blk.submit_read(buffer[:size], 0)
        with pytest.raises(BoundsError, match="at most: use read_into"):
            blk.submit_read(buffer, 0)
        assert blk.num_in_flight == 0


def test_error_of_the_device_has_a_name(vfio_device: Find) -> None:
    """A request of a type that there is not: the device says so, and the next one works."""
    with disk(vfio_device) as blk, blk.pci.dma_alloc(4096) as buffer:
        request = blk._submit("unknown request", 77, 0, [], [(buffer.iova, 512)], None)  # type: ignore[arg-type]  # on purpose
        with pytest.raises(VirtioStatusError, match="the unknown request failed: UNSUPP") as caught:
            request.wait()
        assert caught.value.status == 2
        assert isinstance(request.exception(), VirtioStatusError)
        assert len(blk.read(0, 1)) == SECTOR


@pytest.mark.parametrize("how", ["function", "device", "slot"])
def test_a_reset_ends_what_is_in_flight_once(vfio_device: Find, iommu_mode: str, how: str) -> None:
    with nothing_left(), disk(vfio_device, iommu_mode) as blk, blk.pci.dma_alloc(1 << 16) as buffer:
        blk.write(5, b"kept".ljust(SECTOR, b"\0"))
        with slow(blk.pci):
            requests = [blk.submit_read(buffer[n * SECTOR : (n + 1) * SECTOR], 5) for n in range(20)]
            resets: dict[str, Callable[[], object]] = {
                "function": blk.pci.reset,
                "device": blk.reset,
                "slot": blk.pci.device_set.hot_reset,
            }
            resets[how]()
            ends = [request.exception() for request in requests]
            assert all(end is None or isinstance(end, VirtioAbortedError) for end in ends)
        assert blk.state is DriverState.RUNNING
        assert blk.num_in_flight == 0
        assert blk.read(5, 1).startswith(b"kept")


def test_io_of_threads_over_resets(vfio_device: Find) -> None:
    with disk(vfio_device) as blk:
        stop = threading.Event()
        wrong: list[BaseException] = []
        counts = {"done": 0, "ended": 0}

        def work(number: int) -> None:
            data = bytes([number]) * 8 * SECTOR
            while not stop.is_set():
                try:
                    blk.write(number * 8, data)
                    assert blk.read(number * 8, 8) == data
                    counts["done"] += 1
                except (VirtioAbortedError, VirtioNotRunningError):
                    counts["ended"] += 1
                    time.sleep(0.01)
                except BaseException as error:
                    wrong.append(error)
                    return

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(4):
                time.sleep(0.2)
                (blk.pci if turn % 2 else blk).reset()
        finally:
            time.sleep(0.3)
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert wrong == []
        assert counts["done"] > 0
        assert blk.num_in_flight == blk._bounce.num_taken == 0


def test_a_late_call_resets_the_device(vfio_device: Find) -> None:
    with disk(vfio_device) as blk, blk.pci.dma_alloc(4096) as buffer:
        with slow(blk.pci):
            before = [blk.submit_read(buffer[:SECTOR], 0) for _ in range(3)]
            with pytest.raises(VirtioDeadlineError, match="is not done in time") as caught:
                blk.read(0, 1, timeout=0.05)
            assert all(request.done() for request in before)
        assert caught.value.__notes__ == ["The device was reset for that, and works again."]
        assert blk.num_in_flight == blk._bounce.num_taken == 0
        assert len(blk.read(0, 1)) == SECTOR


def test_use_before_and_after(vfio_device: Find) -> None:
    with nothing_left(), vfio_user.open(vfio_device("virtio-blk").address) as pci:
        blk = VirtioBlk(pci)
        with pytest.raises(VirtioNotRunningError, match="is stopped; use it in a with block"):
            blk.read(0, 1)
        with blk:
            assert pci.config.command & Command.MASTER
        assert not pci.config.command & Command.MASTER
        blk.start()
        assert len(blk.read(0, 1)) == SECTOR
        pci.close()
        blk.stop()


def test_random_bytes(vfio_device: Find, iommu_mode: str) -> None:
    with (
        nothing_left(),
        vfio_user.open(vfio_device("virtio-rng").address, mode=iommu_mode) as pci,
        VirtioRng(pci, timeout=PATIENCE) as rng,
    ):
        first, second = rng.read(5000), rng.read(5000)
        assert len(first) == len(second) == 5000
        assert first != second
        assert len(set(first)) > 200
        pci.reset()
        assert len(rng.read(16)) == 16
        assert rng.read(0) == b""


def test_device_that_would_bypass_the_iommu(vfio_device: Find) -> None:
    """The second entropy device has no iommu_platform."""
    with (
        vfio_user.open(vfio_device("virtio-rng1").address) as pci,
        pytest.raises(VirtioUnsupportedError, match="lacks ACCESS_PLATFORM: it would bypass the IOMMU"),
        VirtioRng(pci),
    ):
        raise AssertionError("it was driven")
