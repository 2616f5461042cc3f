"""The block driver where its device misbehaves; what works is shown on QEMU's."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import MSIX
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from tests.unit.threads import start
from tests.unit.virtio.fake_disk import BAR, COMMON, CONFIGURATION, NOTIFY, STATUS, FakeDisk, capability, finish
from tests.unit.virtio.model import Chain
from vfio_user import PciDevice
from vfio_user.drivers.resettable import DriverState
from vfio_user.drivers.virtio import (
    Feature,
    VirtioAbortedError,
    VirtioBlk,
    VirtioDeadlineError,
    VirtioError,
    VirtioNeedsResetError,
    VirtioNotRunningError,
    VirtioQueueFullError,
    VirtioRingError,
    VirtioStatusError,
    VirtioUnsupportedError,
)
from vfio_user.errors import BoundsError, DeviceGoneError, MalformedReplyError, VfioIoctlError
from vfio_user.pci import Command


@pytest.fixture
def machine(kernel: FakeKernel, tree: FakeSysfs) -> Iterator[FakeDisk]:
    tree.add(ADDRESS, driver="vfio-pci", group=7)
    disk = FakeDisk()
    kernel.devices[ADDRESS] = disk.fake
    yield disk
    disk.fake.close()


@pytest.fixture
def pci(machine: FakeDisk) -> Iterator[PciDevice]:
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        yield pci


@pytest.fixture
def blk(pci: PciDevice) -> Iterator[VirtioBlk]:
    with VirtioBlk(pci, timeout=5.0) as blk:
        yield blk


def test_probe_and_remove(machine: FakeDisk, pci: PciDevice) -> None:
    with VirtioBlk(pci) as blk:
        assert blk.capacity == 1000
        assert blk.max_transfer == 4096, "one segment, where the device does not allow more"
        assert blk.features == (
            Feature.VERSION_1 | Feature.ACCESS_PLATFORM | Feature.INDIRECT_DESC | Feature.EVENT_IDX | 1 << 1
        )
        assert machine.get(STATUS, "<B") == 1 | 2 | 4 | 8
        assert [machine.get(COMMON + at, "<H") for at in (0x10, 0x1A, 0x1C)] == [0, 1, 1]
        assert pci.config.command & Command.MASTER
    assert machine.get(STATUS, "<B") == 0
    assert not pci.config.command & Command.MASTER
    assert not pci.irqs.msix.vectors
    assert pci.address_space.mappings == ()


@pytest.mark.parametrize(
    ("high", "reason"),
    [(0x3000_0001, "lacks ACCESS_PLATFORM: it would bypass the IOMMU"), (0x3000_0002, "lacks VERSION_1")],
)
def test_device_without_what_is_needed(machine: FakeDisk, pci: PciDevice, high: int, reason: str) -> None:
    machine.put(COMMON + 0x04, "<I", high)
    with pytest.raises(VirtioUnsupportedError, match=reason):
        VirtioBlk(pci).start()
    assert not pci.config.command & Command.MASTER
    assert not pci.irqs.msix.vectors
    assert pci.address_space.mappings == ()


def test_legacy_device(machine: FakeDisk, pci: PciDevice) -> None:
    machine.fake.write(7, 0x06, b"\x00\x00")  # no capabilities
    with pytest.raises(VirtioUnsupportedError, match="has no common and no notify structure: it is a legacy device"):
        VirtioBlk(pci).start()


@pytest.mark.parametrize("bad", ["outside", "short", "no bar"])
def test_structures_that_can_not_be(machine: FakeDisk, pci: PciDevice, bad: str) -> None:
    common = {
        "outside": capability(0x50, 1, BAR, 0x3FE0, 0x38),
        "short": capability(0x50, 1, BAR, COMMON, 0x10),
        "no bar": capability(0x50, 1, 2, COMMON, 0x38),
    }[bad]
    notify = capability(0x70, 2, BAR, NOTIFY, 0x1000, struct.pack("<I", 4))
    machine.set_capabilities(common, notify, capability(0, 4, BAR, CONFIGURATION, 0x100))
    with pytest.raises(MalformedReplyError, match=r"outside of it|has 0x10 bytes"):
        VirtioBlk(pci).start()


def test_queue_that_is_not_there(machine: FakeDisk, pci: PciDevice) -> None:
    machine.put(COMMON + 0x18, "<H", 0)
    with pytest.raises(VirtioUnsupportedError, match="has no queue 0"):
        VirtioBlk(pci).start()


def test_queue_that_is_notified_outside(machine: FakeDisk, pci: PciDevice) -> None:
    machine.put(COMMON + 0x1E, "<H", 0x400)
    with pytest.raises(MalformedReplyError, match="is notified at 0x1000"):
        VirtioBlk(pci).start()


def test_device_that_is_gone(machine: FakeDisk, pci: PciDevice) -> None:
    blk = VirtioBlk(pci)
    blk.start()
    machine.put(STATUS, "<B", 0xFF)
    with pci.dma_alloc(4096) as buffer:
        request = blk.submit_read(buffer[:512], 0)
        with pytest.raises(DeviceGoneError, match="reads as all-ones"):
            request.wait(0.6)
    blk.stop()
    assert isinstance(request.exception(), VirtioAbortedError)
    assert not pci.config.command & Command.MASTER


def test_vectors_that_can_not_be_enabled(pci: PciDevice, kernel: FakeKernel) -> None:
    kernel.failing["VFIO_DEVICE_SET_IRQS"] = 28
    with pytest.raises(VfioIoctlError, match="ENOSPC"):
        VirtioBlk(pci).start()
    assert not pci.config.command & Command.MASTER


def test_a_request(machine: FakeDisk, blk: VirtioBlk) -> None:
    queue = machine.queue(blk.pci)
    with blk.pci.dma_alloc(8192) as buffer:
        buffer.view[:] = b"\x55" * 8192
        request = blk.submit_write(buffer[:4096], 7)
        chain = queue.fetch()
        assert chain is not None
        assert struct.unpack_from("<IIQ", chain.data) == (1, 0, 7)
        assert chain.data[16:] == b"\x55" * 4096
        assert [len(part) for part in chain.writable] == [1]
        assert not request.done()
        with pytest.raises(VirtioError, match="still in flight"):
            request.exception()
        waiter = start(lambda: request.wait(30.0))
        finish(queue, chain, 0)
        machine.interrupt()
        waiter.result(10)
        assert request.exception() is None


@pytest.mark.parametrize(("status", "name"), [(1, "IOERR"), (2, "UNSUPP"), (0xFF, "status 255")])
def test_error_status_has_a_name(machine: FakeDisk, blk: VirtioBlk, status: int, name: str) -> None:
    queue = machine.queue(blk.pci)
    with blk.pci.dma_alloc(4096) as buffer:
        request = blk.submit_read(buffer[:1024], 3)
        chain = queue.fetch()
        assert chain is not None
        finish(queue, chain, status)
        with pytest.raises(VirtioStatusError, match=f"the read of 2 sectors at 3 failed: {name}") as caught:
            request.wait(1.0)
        assert caught.value.status == status
        assert blk.num_in_flight == 0


def test_first_error_ends_a_transfer_after_what_is_in_flight(machine: FakeDisk, blk: VirtioBlk) -> None:
    queue = machine.queue(blk.pci)
    with blk.pci.dma_alloc(20 * blk.max_transfer) as buffer:
        transfer = start(lambda: blk.read_into(buffer, 0, timeout=30.0))
        chains: list[Chain] = []
        while len(chains) < 8:
            chain = queue.fetch()
            if chain is not None:
                chains.append(chain)
        finish(queue, chains[2], 1)
        for chain in (*chains[:2], *chains[3:]):
            finish(queue, chain, 0)
        machine.interrupt()
        late = 0
        while not transfer.done():
            chain = queue.fetch()
            if chain is not None:
                late += 1
                finish(queue, chain, 0)
                machine.interrupt()
        with pytest.raises(VirtioStatusError, match="IOERR"):
            transfer.result(10)
        assert late < 12, "no more requests after the error"
        assert blk.num_in_flight == 0


def test_completion_for_nothing_breaks_the_queue_until_a_reset(machine: FakeDisk, blk: VirtioBlk) -> None:
    queue = machine.queue(blk.pci)
    with blk.pci.dma_alloc(4096) as buffer:
        request = blk.submit_read(buffer[:512], 0)
        assert queue.fetch() is not None
        queue.give_back(5, 1)
        with pytest.raises(VirtioRingError, match="buffer 5, which is not in flight"):
            request.wait(1.0)
        with pytest.raises(VirtioRingError):
            blk.submit_read(buffer[:512], 0)
        blk.reset()
        assert isinstance(request.exception(), VirtioAbortedError)
        again = blk.submit_read(buffer[:512], 0)
        queue = machine.queue(blk.pci)
        chain = queue.fetch()
        assert chain is not None
        finish(queue, chain, 0)
        again.wait(1.0)
        assert len(blk._free) == 8, "every slot came back once"


def test_device_that_needs_a_reset(machine: FakeDisk, blk: VirtioBlk) -> None:
    with blk.pci.dma_alloc(4096) as buffer:
        request = blk.submit_read(buffer[:512], 0)
        machine.put(STATUS, "<B", 0x4F)
        with pytest.raises(VirtioNeedsResetError, match="needs a reset"):
            request.wait(0.6)


def test_who_is_interrupted_leaves_no_request_in_flight(machine: FakeDisk, blk: VirtioBlk) -> None:
    """The memory of the transfer goes to the next one: the device must not reach it for this one any more."""

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            blk.read(0, 1, timeout=50.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert blk.num_in_flight == 0


def test_device_that_does_not_answer(machine: FakeDisk, blk: VirtioBlk) -> None:
    with blk.pci.dma_alloc(4096) as buffer:
        request = blk.submit_read(buffer[:512], 0)
        with pytest.raises(VirtioDeadlineError, match="still in flight"):
            request.wait(0.02)
        with pytest.raises(VirtioDeadlineError) as caught:
            blk.read(0, 1, timeout=0.02)
        assert caught.value.__notes__ == ["The device was reset for that, and works again."]
        assert isinstance(request.exception(), VirtioAbortedError)
        assert blk.state is DriverState.RUNNING
        assert blk._bounce.num_taken == 0


def test_queue_that_is_full(blk: VirtioBlk) -> None:
    with blk.pci.dma_alloc(4096) as buffer:
        requests = [blk.submit_read(buffer[:512], 0) for _ in range(8)]
        for _ in range(2):
            with pytest.raises(VirtioQueueFullError, match="8 requests are in flight"):
                blk.submit_read(buffer[:512], 0)
        blk.reset()
        assert all(isinstance(request.exception(), VirtioAbortedError) for request in requests)
        blk.submit_read(buffer[:512], 0)


def test_resets_of_the_function(machine: FakeDisk, blk: VirtioBlk) -> None:
    with blk.pci.dma_alloc(4096) as buffer:
        request = blk.submit_read(buffer[:512], 0)
        blk.pci.reset()
        assert machine.fake.resets == 1
        assert isinstance(request.exception(), VirtioAbortedError)
        assert machine.get(STATUS, "<B") == 15
        assert (MSIX, 1) in machine.fake.eventfds


def test_reset_that_fails_leaves_a_state_with_a_name(machine: FakeDisk, blk: VirtioBlk) -> None:
    machine.put(COMMON + 0x04, "<I", 0)
    with pytest.raises(VirtioUnsupportedError):
        blk.reset()
    assert str(blk.state.value) == "failed"
    with pytest.raises(VirtioNotRunningError, match=r"is failed; reset\(\) it"):
        blk.flush()
    machine.put(COMMON + 0x04, "<I", 0x3000_0003)
    blk.reset()
    assert blk.state is DriverState.RUNNING


def test_what_the_device_lacks(blk: VirtioBlk) -> None:
    for act in (blk.submit_flush, lambda: blk.discard(0, 1), lambda: blk.write_zeroes(0, 1)):
        with pytest.raises(VirtioUnsupportedError, match="VIRTIO_BLK_F_"):
            act()
    blk.flush()
    with pytest.raises(BoundsError, match="1001 sectors at 0"):
        blk.read(0, 1001)
