"""Two ports of the emulated 82576 on one hub: everything that one sends, the other receives."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.net_helpers import PATIENCE, Find, carry, collect, exchange
from vfio_user import IrqPoller
from vfio_user.drivers.ethernet import (
    BROADCAST,
    FrameSizeError,
    LinkDownError,
    NumberedFrames,
    RingFullError,
    build_frame,
)
from vfio_user.drivers.igb import Igb, IgbCopyEngine, IgbDeadlineError, IgbNotRunningError
from vfio_user.drivers.resettable import DriverState
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, DeadlineError, UnsupportedError
from vfio_user.pci import Command
from vfio_user.testing import hmp

SIZES = [60, 61, 64, 127, 1514, 1513, 1000, 256, 512, 999]


@contextlib.contextmanager
def two_ports(find: Find, mode: str = "auto", **options: object) -> Iterator[tuple[Igb, Igb]]:
    """Bring two ports up, with links."""
    addresses = [find("igb0").address, find("igb1").address]
    with (
        vfio_user.open_all(addresses, mode=mode) as (first, second),
        Igb(first, **options) as one,  # type: ignore[arg-type]  # the tests' own keywords
        Igb(second, **options) as other,  # type: ignore[arg-type]
    ):
        one.wait_link(PATIENCE)
        other.wait_link(PATIENCE)
        yield one, other


def stream_of(sender: Igb, receiver: Igb, number: int) -> NumberedFrames:
    return NumberedFrames(receiver.mac, sender.mac, stream=number)


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_frames_go_both_ways(vfio_device: Find, iommu_mode: str, interrupts: bool) -> None:
    with nothing_left(), two_ports(vfio_device, iommu_mode, interrupts=interrupts) as (one, other):
        assert one.mac != other.mac
        there, back = stream_of(one, other, 1), stream_of(other, one, 2)
        carry(one, other, there, SIZES * 20)
        carry(other, one, back, SIZES * 2, batch=1)
        one.flush()
        counted = one.statistics()
        assert counted.tx_frames == counted.reported_sent == 200
        assert counted.tx_bytes == sum(SIZES) * 20 + 4 * 200
        assert counted.aborted == counted.dropped == counted.missed == counted.crc_errors == 0
        assert other.statistics().rx_frames >= 200
        assert counted.rx_frames >= 20
    assert one.state is DriverState.STOPPED


def test_generator_and_receiver_at_once(vfio_device: Find) -> None:
    """A full ring makes the sender wait; nothing is lost, and nothing comes twice."""
    with two_ports(vfio_device, tx_entries=64) as (one, other):
        chance = random.Random(82576)
        sizes = [chance.randint(60, 1514) for _ in range(600)]
        lines = [(one, other, stream_of(one, other, 3)), (other, one, stream_of(other, one, 4))]

        def generate(port: Igb, stream: NumberedFrames) -> None:
            for first in range(0, len(sizes), 100):
                frames = [stream.make(number, sizes[number]) for number in range(first, first + 100)]
                port.send(frames, timeout=PATIENCE)

        with ThreadPoolExecutor(4) as threads:
            receivers = [threads.submit(collect, port, stream, len(sizes)) for _, port, stream in lines]
            generators = [threads.submit(generate, port, stream) for port, _, stream in lines]
            for each in generators:
                each.result()
            for receiver in receivers:
                assert receiver.result() == list(range(len(sizes)))


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_tasks(vfio_device: Find, interrupts: bool) -> None:
    """Both ways at once in one event loop, which is never held up."""
    with nothing_left(), two_ports(vfio_device, tx_entries=16, interrupts=interrupts) as (one, other):
        exchange(one, other, stream_of(one, other, 60), stream_of(other, one, 61))
        assert one.statistics().reported_sent == 200
        with pytest.raises(IgbDeadlineError, match="no frame came within"):
            asyncio.run(other.receive_async(timeout=0.05))


def test_frames_from_dma_memory_are_not_copied(vfio_device: Find) -> None:
    with two_ports(vfio_device) as (one, other), one.pci.address_space.pool(2048) as pool:
        stream = stream_of(one, other, 5)
        buffers = pool.take_many(50)
        slices = []
        for number, buffer in enumerate(buffers):
            buffer.view[: 60 + number] = stream.make(number, 60 + number)
            slices.append(buffer[: 60 + number])
        one.send(slices)
        one.flush()
        pool.give_many(buffers)
        assert collect(other, stream, 50) == list(range(50))


def test_long_frames(vfio_device: Find) -> None:
    with two_ports(vfio_device, mtu=9000) as (one, other):
        carry(one, other, stream_of(one, other, 6), [9014, 1515, 9018, 60, 4096, 8192])


def test_short_frames_are_padded(vfio_device: Find) -> None:
    with two_ports(vfio_device) as (one, other):
        short = build_frame(BROADCAST, one.mac, 0x88B6, b"short")
        one.send([short])
        deadline = time.monotonic() + PATIENCE
        found: list[bytes] = []
        while not found:
            assert time.monotonic() < deadline
            found = [frame for frame in other.receive() if frame[12:14] == b"\x88\xb6"]
        assert found == [short.ljust(60, b"\0")]


def test_several_queues(vfio_device: Find) -> None:
    with two_ports(vfio_device, queues=4) as (one, other):
        stream = stream_of(one, other, 7)
        for queue in range(4):
            one.send([stream.make(queue, 100)], queue=queue)
            one.flush(queue=queue)
            assert collect(other, stream, 1) == [queue], "a frame without IP comes to queue 0"
        header = bytes.fromhex("4500002e00000000401100000a000001")
        sent = [
            build_frame(other.mac, one.mac, 0x0800, header + bytes([10, 0, 0, host]) + bytes(26)) for host in range(64)
        ]
        one.send(sent)
        one.flush()
        arrived = [other.receive(queue=queue) for queue in range(4)]
        deadline = time.monotonic() + PATIENCE
        while sum(map(len, arrived)) < len(sent):
            assert time.monotonic() < deadline
            arrived = [old + other.receive(queue=queue) for queue, old in enumerate(arrived)]
        assert sorted(frame for frames in arrived for frame in frames) == sorted(sent)
        assert all(arrived), "flows are spread over all queues"
        with pytest.raises(BoundsError, match="has no queue 4"):
            one.send([sent[0]], queue=4)


def test_frames_that_can_not_be(vfio_device: Find) -> None:
    with two_ports(vfio_device) as (one, other):
        good = stream_of(one, other, 8).make(0, 100)
        for wrong in (b"", bytes(13), bytes(1519)):
            with pytest.raises(FrameSizeError, match=r"frame 1 has \d+ bytes; 14 \(its header\) to 1518"):
                one.send([good, wrong])
        assert one.statistics().tx_frames == 0, "nothing was sent"
        with pytest.raises(IgbDeadlineError, match="no frame came within"):
            other.receive(timeout=0.05)
        assert other.receive() == []


def test_ring_that_is_full(vfio_device: Find) -> None:
    """The transmitter is switched off, so that nothing leaves the ring."""
    with two_ports(vfio_device, tx_entries=16) as (one, other):
        stream = stream_of(one, other, 9)
        control = one.registers.bar.read32(0x0400)
        one.registers.bar.write32(0x0400, control & ~2)
        with pytest.raises(RingFullError, match="15 of 20 frames were handed over") as caught:
            one.send([stream.make(number, 60) for number in range(20)], timeout=0.05)
        assert caught.value.sent == 15
        with pytest.raises(IgbDeadlineError, match="15 frames are not sent"):
            one.flush(timeout=0.05)
        one.registers.bar.write32(0x0400, control)
        one.registers.bar.write32(0xE018, one.queues[0].tx.tail)
        one.flush(timeout=PATIENCE)
        one.send([stream.make(number, 60) for number in range(15, 20)])
        assert collect(other, stream, 20) == list(range(20))


def test_link_that_goes_down_and_comes_back(vfio_device: Find) -> None:
    with two_ports(vfio_device) as (one, other):
        stream = stream_of(one, other, 10)
        try:
            hmp("set_link igb0 off")
            deadline = time.monotonic() + PATIENCE
            while one.link_up:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(LinkDownError, match="wait_link"):
                one.send([stream.make(0, 100)])
            with pytest.raises(IgbDeadlineError, match=r"down, after 0\.05 s still"):
                one.wait_link(0.05)
        finally:
            hmp("set_link igb0 on")
        one.wait_link(PATIENCE)
        carry(one, other, stream, SIZES)


@pytest.mark.parametrize("how", ["function", "controller"])
def test_it_works_after_resets(vfio_device: Find, how: str) -> None:
    with nothing_left(), two_ports(vfio_device) as (one, other):
        queues = one.queues
        for turn in range(2):
            (one.pci.reset if how == "function" else one.reset)()
            assert one.state is DriverState.RUNNING
            one.wait_link(PATIENCE)
            carry(one, other, stream_of(one, other, 20 + turn), SIZES)
            carry(other, one, stream_of(other, one, 30 + turn), SIZES)
        assert one.queues is queues
        assert one.statistics().tx_frames == 2 * len(SIZES)


def test_hot_reset_under_traffic(vfio_device: Find) -> None:
    """Both ports are reset together while frames fly; who sends and who receives is told, and goes on afterwards."""
    with two_ports(vfio_device) as (one, other):
        stream = stream_of(one, other, 40)
        stop = threading.Event()
        wrong: list[BaseException] = []
        told = {"sender": 0, "receiver": 0}
        received: list[int] = []

        def send() -> None:
            number = 0
            while not stop.is_set():
                try:
                    one.send([stream.make(number + n, 200) for n in range(16)], timeout=PATIENCE)
                    number += 16
                except (IgbNotRunningError, LinkDownError):
                    told["sender"] += 1
                    time.sleep(0.01)
                except BaseException as error:
                    wrong.append(error)
                    return

        def receive() -> None:
            while not stop.is_set():
                try:
                    received.extend(stream.check(other.receive(timeout=0.1)))
                except IgbDeadlineError:
                    pass
                except IgbNotRunningError:
                    told["receiver"] += 1
                    time.sleep(0.01)
                except BaseException as error:
                    wrong.append(error)
                    return

        threads = [threading.Thread(target=send), threading.Thread(target=receive)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.5)
            one.pci.device_set.hot_reset()
            one.wait_link(PATIENCE)
            other.wait_link(PATIENCE)
            before = len(received)
            deadline = time.monotonic() + PATIENCE
            while len(received) < before + 64 and not wrong:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert wrong == []
        assert told["sender"] > 0
        assert len(set(received)) == len(received), "no frame came twice"
        one.flush(timeout=PATIENCE)
        counted = one.statistics()
        assert counted.reported_sent + counted.aborted >= len(received)


def test_controller_gathers_interrupts(vfio_device: Find) -> None:
    """With an interval there are fewer interrupts than frames, and not one frame is lost."""
    with two_ports(vfio_device) as (one, other):
        (vector, *_) = other.pci.irqs.msix.vectors

        def interrupts(interval: float, stream: NumberedFrames) -> int:
            other.set_interrupt_interval(interval)
            vector.drain()
            for number in range(100):  # one by one: those of one batch arrive before the guest takes an interrupt
                one.send([stream.make(number, 200)], timeout=PATIENCE)
            counted = 0
            with IrqPoller([vector]) as poller, contextlib.suppress(DeadlineError):
                while True:
                    counted += sum(count for _, count in poller.wait(0.5))
            assert collect(other, stream, 100) == list(range(100))  # after the count: who receives takes interrupts
            assert 1 <= counted <= 100
            return counted

        # A machine that is busy may need longer for each frame than the interval is.
        turns = range(50, 60, 2)
        assert any(
            interrupts(0.008191, stream_of(one, other, turn)) < interrupts(0.0, stream_of(one, other, turn + 1))
            for turn in turns
        )


def test_use_before_and_after(vfio_device: Find) -> None:
    with nothing_left(), vfio_user.open(vfio_device("igb0").address) as pci:
        port = Igb(pci)
        with pytest.raises(IgbNotRunningError, match="is stopped; use it in a with block"):
            port.send([bytes(60)])
        with port:
            assert pci.config.command & Command.MASTER
            words = [port.read_eeprom(word) for word in range(64)]
            assert sum(words) & 0xFFFF == 0xBABA, "the checksum of an EEPROM of Intel's"
            with pytest.raises(BoundsError, match="no EEPROM word"):
                port.read_eeprom(1 << 14)
        assert not pci.config.command & Command.MASTER
        with pytest.raises(IgbNotRunningError):
            port.receive()
    with vfio_user.open(vfio_device("edu").address) as pci, pytest.raises(UnsupportedError, match="does not drive"):
        Igb(pci)


def test_device_that_is_closed_first(vfio_device: Find) -> None:
    with nothing_left():
        pci = vfio_user.open(vfio_device("igb0").address)
        port = Igb(pci)
        port.start()
        pci.close()
        port.stop()
        assert port.state is DriverState.STOPPED


def test_memory_is_copied_by_loopback(vfio_device: Find, iommu_mode: str) -> None:
    with (
        nothing_left(),
        vfio_user.open(vfio_device("igb0").address, mode=iommu_mode) as pci,
        IgbCopyEngine(pci) as engine,
        pci.dma_alloc(4 << 20) as source,
        pci.dma_alloc(4 << 20) as target,
    ):
        for size in (60, 61, 4096, 4155, 4157, 3 << 20):
            source.view[:size] = random.Random(size).randbytes(size)
            target.view[: size + 64] = b"\xaa" * (size + 64)
            engine.copy(target, source[:size], timeout=PATIENCE)
            assert target.view[:size] == source.view[:size]
            assert bytes(target.view[size : size + 64]) == b"\xaa" * 64, "not a byte more"


def test_copies_that_can_not_be(vfio_device: Find) -> None:
    with (
        vfio_user.open(vfio_device("igb0").address) as pci,
        IgbCopyEngine(pci) as engine,
        pci.dma_alloc(1 << 16) as memory,
    ):
        with pytest.raises(BoundsError, match="60 at least"):
            engine.copy(memory[4096:], memory[:59])
        with pytest.raises(BoundsError, match="do not fit a destination"):
            engine.copy(memory[60000:], memory[:8192])
        with pytest.raises(ArgumentError, match="overlap"):
            engine.copy(memory[100:], memory[:200])
        with pytest.raises(AlignmentError, match="is odd"):
            engine.copy(memory[4097:], memory[:200])
        memory.view[12:14] = b"\x08\x00"
        with pytest.raises(UnsupportedError, match="look like the type of a frame"):
            engine.copy(memory[8192:], memory[:100])
        memory.view[:] = bytes(len(memory))
        for begin in range(4000, 5000, 4):
            memory.view[begin : begin + 2] = b"\x08\x00"
        engine.copy(memory[32768:], memory[:20000])
        assert memory.view[32768:52768] == memory.view[:20000], "cut where nothing special is"


def test_copy_that_does_not_end_ends_by_the_deadline(vfio_device: Find) -> None:
    """The transmitter is off: nothing is carried, and the reset that follows mends it."""
    with (
        vfio_user.open(vfio_device("igb0").address) as pci,
        IgbCopyEngine(pci) as engine,
        pci.dma_alloc(8192) as memory,
    ):
        memory.view[:4096] = b"again" * 819 + b"!"
        engine.registers.bar.write32(0x0400, 0)
        with pytest.raises(IgbDeadlineError, match="0 of 1 pieces of a copy arrived in time"):
            engine.copy(memory[4096:], memory[:4096], timeout=0.05)
        assert memory.view[4096:] == bytes(4096)
        engine.copy(memory[4096:], memory[:4096], timeout=PATIENCE)
        assert memory.view[4096:] == memory.view[:4096]


def test_interrupt_on_demand(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("igb0").address) as pci, IgbCopyEngine(pci) as engine:
        engine.vector.drain()
        for _ in range(3):
            engine.raise_interrupt()
            assert engine.vector.wait(PATIENCE) == 1
        pci.reset()
        engine.vector.drain()
        engine.raise_interrupt()
        assert engine.vector.wait(PATIENCE) >= 1
