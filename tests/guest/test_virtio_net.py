"""Virtio network devices on one hub, with each other and with an 82576."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.net_helpers import PATIENCE, Find, carry, collect, exchange
from vfio_user.drivers.ethernet import FrameSizeError, LinkDownError, NumberedFrames
from vfio_user.drivers.igb import Igb
from vfio_user.drivers.resettable import DriverState
from vfio_user.drivers.virtio import (
    VirtioAbortedError,
    VirtioDeadlineError,
    VirtioNet,
    VirtioNotRunningError,
)
from vfio_user.errors import BoundsError
from vfio_user.testing import hmp

SIZES = [60, 61, 64, 127, 1514, 1513, 1000, 256, 512, 999]


@contextlib.contextmanager
def two_ports(find: Find, mode: str = "auto", **options: object) -> Iterator[tuple[VirtioNet, VirtioNet]]:
    addresses = [find("virtio-net0").address, find("virtio-net1").address]
    with (
        vfio_user.open_all(addresses, mode=mode) as (first, second),
        VirtioNet(first, timeout=PATIENCE, **options) as one,  # type: ignore[arg-type]  # the tests' own keywords
        VirtioNet(second, timeout=PATIENCE, **options) as other,  # type: ignore[arg-type]
    ):
        one.wait_link(PATIENCE)
        yield one, other


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_frames_go_both_ways(vfio_device: Find, iommu_mode: str, interrupts: bool) -> None:
    with nothing_left(), two_ports(vfio_device, iommu_mode, interrupts=interrupts) as (one, other):
        there, back = NumberedFrames(other.mac, one.mac, stream=51), NumberedFrames(one.mac, other.mac, stream=52)
        carry(one, other, there, SIZES * 30)
        carry(other, one, back, SIZES * 4, batch=1)
        one.flush()
        assert (one.num_sent, one.num_aborted) == (300, 0)


@pytest.mark.parametrize("queue_size", [16, 256])
def test_generator_and_receiver_at_once(vfio_device: Find, queue_size: int) -> None:
    with two_ports(vfio_device, queue_size=queue_size) as (one, other):
        chance = random.Random(1041)
        sizes = [chance.randint(60, 1514) for _ in range(600)]
        stream = NumberedFrames(other.mac, one.mac, stream=53)
        with ThreadPoolExecutor(1) as threads:
            receiver = threads.submit(collect, other, stream, len(sizes))
            for first in range(0, len(sizes), 100):
                one.send([stream.make(number, sizes[number]) for number in range(first, first + 100)])
            # When the receiver has no buffers for a while, QEMU's hub may let the next frame overtake a waiting one.
            assert sorted(receiver.result()) == list(range(len(sizes)))


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_tasks(vfio_device: Find, interrupts: bool) -> None:
    with nothing_left(), two_ports(vfio_device, queue_size=32, interrupts=interrupts) as (one, other):
        there, back = NumberedFrames(other.mac, one.mac, stream=62), NumberedFrames(one.mac, other.mac, stream=63)
        exchange(one, other, there, back)
        assert (one.num_sent, other.num_sent) == (200, 200)
        with pytest.raises(VirtioDeadlineError, match="no frame came within"):
            asyncio.run(other.receive_async(timeout=0.05))


def test_with_an_82576(vfio_device: Find) -> None:
    addresses = [vfio_device("virtio-net0").address, vfio_device("igb0").address]
    with (
        vfio_user.open_all(addresses) as (first, second),
        VirtioNet(first, timeout=PATIENCE) as one,
        Igb(second, timeout=PATIENCE) as other,
    ):
        other.wait_link(PATIENCE)
        carry(one, other, NumberedFrames(other.mac, one.mac, stream=54), SIZES)
        carry(other, one, NumberedFrames(one.mac, other.mac, stream=55), SIZES)


def test_frames_from_dma_memory_are_not_copied(vfio_device: Find) -> None:
    with two_ports(vfio_device) as (one, other), one.pci.address_space.pool(2048) as pool:
        stream = NumberedFrames(other.mac, one.mac, stream=56)
        buffers = pool.take_many(50)
        slices = []
        for number, buffer in enumerate(buffers):
            buffer.view[: 60 + number] = stream.make(number, 60 + number)
            slices.append(buffer[: 60 + number])
        one.send(slices)
        one.flush()
        pool.give_many(buffers)
        assert collect(other, stream, 50) == list(range(50))


def test_frames_that_can_not_be(vfio_device: Find) -> None:
    with two_ports(vfio_device) as (one, other):
        for wrong in (b"", bytes(13), bytes(one.max_frame + 1)):
            with pytest.raises(FrameSizeError, match=r"frame 1 has \d+ bytes; 14"):
                one.send([bytes(60), wrong])
        one.flush()
        assert one.num_sent == 0
        with pytest.raises(BoundsError, match="limit is 0"):
            other.receive(0)
        with pytest.raises(VirtioDeadlineError, match="no frame came within"):
            other.receive(timeout=0.05)
        assert other.receive() == []


def test_link_that_goes_down_and_comes_back(vfio_device: Find) -> None:
    with two_ports(vfio_device) as (one, other):
        stream = NumberedFrames(other.mac, one.mac, stream=57)
        try:
            hmp("set_link virtio-net0 off")
            deadline = time.monotonic() + PATIENCE
            while one.link_up:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(LinkDownError, match="wait_link"):
                one.send([stream.make(0, 100)])
            with pytest.raises(VirtioDeadlineError, match=r"down, after 0\.05 s still"):
                one.wait_link(0.05)
        finally:
            hmp("set_link virtio-net0 on")
        one.wait_link(PATIENCE)
        carry(one, other, stream, SIZES)


@pytest.mark.parametrize("how", ["function", "device", "slot"])
def test_it_works_after_resets(vfio_device: Find, how: str) -> None:
    with nothing_left(), two_ports(vfio_device) as (one, other):
        resets: dict[str, Callable[[], object]] = {
            "function": one.pci.reset,
            "device": one.reset,
            "slot": one.pci.device_set.hot_reset,
        }
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(one.receive, timeout=PATIENCE)
            time.sleep(0.1)
            resets[how]()
            assert isinstance(waiting.exception(PATIENCE), (VirtioAbortedError, VirtioNotRunningError))
        assert one.state is DriverState.RUNNING
        carry(one, other, NumberedFrames(other.mac, one.mac, stream=58), SIZES)
        carry(other, one, NumberedFrames(one.mac, other.mac, stream=59), SIZES)
