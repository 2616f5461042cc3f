"""The network driver where its device misbehaves or is slow; what works is shown on QEMU's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from tests.unit.threads import start
from tests.unit.virtio.fake_disk import COMMON, CONFIGURATION, QUEUE_SIZE, FakeDisk, Space
from tests.unit.virtio.model import DeviceQueue
from vfio_user.drivers.ethernet import FrameSizeError, LinkDownError, RingFullError
from vfio_user.drivers.virtio import (
    SplitQueue,
    VirtioAbortedError,
    VirtioDeadlineError,
    VirtioNet,
    VirtioNotRunningError,
    VirtioRingError,
)

MAC = bytes.fromhex("525400123456")
#: As for a disk, with MTU, MAC and STATUS.
FEATURES = 0x3001_002B


class FakePort(FakeDisk):
    """A network device, whose queues are looked for where the driver has them."""

    def __init__(self) -> None:
        super().__init__(ids=(0x1AF4, 0x1041, 0x020000))
        self.put(COMMON + 0x04, "<I", FEATURES)
        self.put(CONFIGURATION, "<6BHHH", *MAC, 1, 1, 1500)

    def queue_of(self, net: VirtioNet, queue: SplitQueue[Any]) -> DeviceQueue:
        addresses = (queue.descriptors_iova, queue.available_iova, queue.used_iova)
        found = DeviceQueue(Space(net.pci), queue.size, *addresses)
        found.event_index = True
        return found


@pytest.fixture
def machine(kernel: FakeKernel, tree: FakeSysfs) -> Iterator[FakePort]:
    tree.add(ADDRESS, driver="vfio-pci", group=7)
    port = FakePort()
    kernel.devices[ADDRESS] = port.fake
    yield port
    port.fake.close()


@pytest.fixture
def net(machine: FakePort) -> Iterator[VirtioNet]:
    with vfio_user.open(ADDRESS, mode="type1v2") as pci, VirtioNet(pci, timeout=5.0, interrupts=False) as net:
        yield net


def test_what_it_is(net: VirtioNet) -> None:
    assert net.mac == MAC
    assert net.max_frame == 1518
    assert net.link_up


def test_frames_go_out_behind_a_header(machine: FakePort, net: VirtioNet) -> None:
    device = machine.queue_of(net, net._tx.queue)
    with net.pci.dma_alloc(4096) as memory:
        memory.view[:100] = b"d" * 100
        net.send([b"c" * 60, memory[:100]])
        first, second = device.fetch(), device.fetch()
        assert first is not None
        assert second is not None
        assert first.data == bytes(12) + b"c" * 60
        assert [len(part) for part in second.readable] == [12, 100], "from where it is"
        assert second.data == bytes(12) + b"d" * 100
        with pytest.raises(VirtioDeadlineError, match="2 frames were not taken in time"):
            net.flush(timeout=0.02)
        device.give_back(first.head, 0)
        device.give_back(second.head, 0)
        net.flush()
        assert net.num_sent == 2


def test_queue_that_is_full(machine: FakePort, net: VirtioNet) -> None:
    device = machine.queue_of(net, net._tx.queue)
    room = QUEUE_SIZE // 2
    with pytest.raises(RingFullError, match=f"{room} of 6 frames") as caught:
        net.send([bytes(60)] * 6, timeout=0.02)
    assert caught.value.sent == room
    sender = start(lambda: net.send([bytes(60)] * 2, timeout=30.0))
    time.sleep(0.02)
    assert not sender.done()
    for chain in iter(device.fetch, None):
        device.give_back(chain.head, 0)
    sender.result(10)
    assert net.num_sent >= 2, "as many as there had to be room for, and what else was back when the sender looked"


def test_frames_come_in(machine: FakePort, net: VirtioNet) -> None:
    device = machine.queue_of(net, net._rx.queue)
    assert device.num_available == QUEUE_SIZE
    for turn in range(3):
        for number in range(QUEUE_SIZE):
            chain = device.fetch()
            assert chain is not None
            device.give_back(chain.head, chain.fill(bytes(12) + bytes([turn, number]) * 30))
        assert net.receive(3) + net.receive() == [bytes([turn, number]) * 30 for number in range(QUEUE_SIZE)]
        assert device.num_available == QUEUE_SIZE, "the buffers went back"
    assert net.receive() == []
    with pytest.raises(VirtioDeadlineError, match="no frame came"):
        net.receive(timeout=0.02)


@pytest.mark.parametrize("written", [0, 11, 12, 25])
def test_less_than_a_frame_is_dropped_and_counted(machine: FakePort, net: VirtioNet, written: int) -> None:
    device = machine.queue_of(net, net._rx.queue)
    for size in (written, 12 + 60):
        chain = device.fetch()
        assert chain is not None
        device.give_back(chain.head, size)
    assert [len(frame) for frame in net.receive()] == [60]
    assert net.num_bad == 1
    assert device.num_available == QUEUE_SIZE


def test_more_than_the_buffer_breaks_the_queue(machine: FakePort, net: VirtioNet) -> None:
    device = machine.queue_of(net, net._rx.queue)
    chain = device.fetch()
    assert chain is not None
    device.give_back(chain.head, 1 << 16)
    with pytest.raises(VirtioRingError, match="wrote 65536 bytes into a buffer with room for"):
        net.receive()
    net.reset()
    assert net.receive() == []


def test_reset_ends_waiting_and_counts(machine: FakePort, net: VirtioNet) -> None:
    net.send([bytes(60)] * 3)
    waiting = [start(lambda: net.receive(timeout=30.0)), start(lambda: net.flush(timeout=30.0))]
    time.sleep(0.05)
    net.reset_prepare()
    for each in waiting:
        assert isinstance(each.exception(10), (VirtioAbortedError, VirtioNotRunningError))
    assert net.num_aborted == 3
    with pytest.raises(VirtioNotRunningError, match="is resetting"):
        net.send([bytes(60)])
    net.reset_done()
    net.send([bytes(60)] * (QUEUE_SIZE // 2))
    assert machine.queue_of(net, net._rx.queue).num_available == QUEUE_SIZE


def test_sending_is_refused(machine: FakePort, net: VirtioNet) -> None:
    with pytest.raises(FrameSizeError, match="frame 1 has 1519 bytes"):
        net.send([bytes(60), bytes(1519)])
    machine.put(CONFIGURATION + 6, "<H", 0)
    with pytest.raises(LinkDownError, match="Nothing was sent"):
        net.send([bytes(60)])
    with pytest.raises(VirtioDeadlineError, match="is down"):
        net.wait_link(0.02)
    assert machine.queue_of(net, net._tx.queue).num_available == 0
