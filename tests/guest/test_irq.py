"""Interrupts of real devices: INTx, MSI, MSI-X, ERR, REQ."""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import IrqPoller, PciDevice
from vfio_user.drivers import edu
from vfio_user.errors import ArgumentError, BoundsError, BusyError, ClosedError, DeadlineError, UnsupportedError
from vfio_user.kernel.uapi import IrqFlags
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]


@pytest.fixture
def nvme(vfio_device: Find) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("nvme").address) as pci:
        yield pci


@pytest.fixture
def pci(vfio_device: Find) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address) as pci:
        yield pci


def test_counts_are_not_lost(nvme: PciDevice) -> None:
    with nvme.irqs.msix.enable(4) as vectors:
        for _ in range(5):
            nvme.irqs.msix.trigger(2)
        assert vectors[2].wait(1.0) == 5
        assert [vector.drain() for vector in vectors] == [0, 0, 0, 0]
        with pytest.raises(DeadlineError, match=r"MSI-X 1"):
            vectors[1].wait(0.01)


def test_many_vectors_at_once(nvme: PciDevice) -> None:
    with nvme.irqs.msix.enable(16) as vectors, IrqPoller(vectors) as poller:
        for number in (3, 9, 9):
            nvme.irqs.msix.trigger(number)
        assert {vector.number: count for vector, count in poller.wait(1.0)} == {3: 1, 9: 2}
        with pytest.raises(DeadlineError):
            poller.wait(0.01)


def test_one_call_reads_all_vectors_and_loses_nothing(nvme: PciDevice) -> None:
    """All that the device has, from three threads, gathered."""
    msix, threads, each = nvme.irqs.msix, 3, 400
    with msix.enable(msix.count) as vectors, IrqPoller(vectors, interval=0.005) as poller:
        for number in range(msix.count):
            msix.trigger(number)
        assert sorted((vector.number, count) for vector, count in poller.wait(5.0)) == [
            (n, 1) for n in range(msix.count)
        ]
        numbers = [number * 7 % msix.count for number in range(each)]

        def send() -> None:
            for number in numbers:
                msix.trigger(number)

        senders = [threading.Thread(target=send) for _ in range(threads)]
        for sender in senders:
            sender.start()
        seen, calls = [0] * msix.count, 0
        while sum(seen) < threads * each:
            calls += 1
            for vector, count in poller.wait(30.0):
                seen[vector.number] += count
        for sender in senders:
            sender.join(30)
        assert seen == [threads * numbers.count(number) for number in range(msix.count)]
        assert calls < threads * each, "many at a time"
        assert poller.drain() == []


def test_many_vectors_in_asyncio(nvme: PciDevice) -> None:
    async def main() -> None:
        with nvme.irqs.msix.enable(16) as vectors, IrqPoller(vectors) as poller:
            asyncio.get_running_loop().call_later(0.05, nvme.irqs.msix.trigger, 11)
            async with asyncio.timeout(10):
                assert await poller.wait() == [(vectors[11], 1)]
            asyncio.get_running_loop().call_later(0.05, nvme.irqs.msix.disable)
            with pytest.raises(ClosedError, match="disabled"):
                await poller.wait()

    asyncio.run(main())


def test_vector_is_a_file_that_select_understands(nvme: PciDevice) -> None:
    with nvme.irqs.msix.enable(1) as (vector,):
        assert select.select([vector], [], [], 0)[0] == []
        nvme.irqs.msix.trigger(0)
        assert select.select([vector], [], [], 1)[0] == [vector]
        assert vector.drain() == 1


def test_asyncio(nvme: PciDevice) -> None:
    async def main() -> None:
        with nvme.irqs.msix.enable(2) as (first, second):
            loop = asyncio.get_running_loop()
            loop.call_later(0.05, nvme.irqs.msix.trigger, 0)
            assert await asyncio.wait_for(first.wait(), 5) == 1
            nvme.irqs.msix.trigger(1)
            assert await second == 1
            seen = 0
            for _ in range(3):
                nvme.irqs.msix.trigger(1)
            async for count in second:
                seen += count
                if seen == 3:
                    break
            waiter = asyncio.ensure_future(first.wait())
            await asyncio.sleep(0.01)
            nvme.irqs.msix.disable()
            with pytest.raises(ClosedError, match=r"disabled"):
                await waiter

    asyncio.run(main())


def test_vectors_come_and_go_while_others_are_live(nvme: PciDevice) -> None:
    msix = nvme.irqs.msix
    with msix.enable(4) as vectors:
        msix.remove(1)
        with pytest.raises(ClosedError):
            vectors[1].wait(0)
        with pytest.raises(ArgumentError):
            msix.trigger(1)
        again = msix.add(1)
        msix.trigger(1)
        msix.trigger(0)
        assert (again.wait(1.0), vectors[0].wait(1.0)) == (1, 1)
        if msix.flags & IrqFlags.NORESIZE:
            with pytest.raises(UnsupportedError, match=r"enable\(9\)"):
                msix.add(8)
        else:
            more = msix.add(8)
            msix.trigger(8)
            assert more.wait(1.0) == 1
        with pytest.raises(BusyError):
            msix.add(0)


def test_wrong_counts(nvme: PciDevice) -> None:
    msix = nvme.irqs.msix
    for count in (0, -1, msix.count + 1):
        with pytest.raises(BoundsError):
            msix.enable(count)
    with pytest.raises(UnsupportedError, match=r"no MSI interrupt"):
        nvme.irqs.msi.enable(1)
    with pytest.raises(ArgumentError, match=r"not enabled"):
        msix.trigger(0)
    with msix.enable(1), pytest.raises(BusyError):
        msix.enable(1)
    with pytest.raises(UnsupportedError, match=r"can't mask"):
        msix.mask(0)


def test_disabling_wakes_who_waits(nvme: PciDevice) -> None:
    (vector,) = nvme.irqs.msix.enable(1)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            vector.wait(30)
        except ClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not vector._waiting:
        pass
    nvme.irqs.msix.disable()
    thread.join(5)
    assert len(caught) == 1


def test_err_and_req_can_be_watched(nvme: PciDevice) -> None:
    for index in (nvme.irqs.err, nvme.irqs.req):
        with index.enable(1) as (vector,):
            index.trigger(0)
            assert vector.wait(1.0) == 1


def test_intx_is_automasked_until_unmasked(pci: PciDevice) -> None:
    bar, intx = pci.bar(0), pci.irqs.intx
    assert intx.flags & IrqFlags.AUTOMASKED
    with intx.enable(1) as (vector,):
        bar.write32(edu.IRQ_RAISE, 1)
        assert vector.wait(2.0) == 1
        bar.write32(edu.IRQ_RAISE, 2)
        with pytest.raises(DeadlineError):
            vector.wait(0.1)
        intx.unmask()
        assert vector.wait(2.0) == 1, "an interrupt that is still asserted fires again"
        bar.write32(edu.IRQ_ACK, 3)
        intx.unmask()
        with pytest.raises(DeadlineError):
            vector.wait(0.1)
        intx.mask()
        bar.write32(edu.IRQ_RAISE, 1)
        with pytest.raises(DeadlineError):
            vector.wait(0.1)
        intx.unmask()
        assert vector.wait(2.0) == 1
        bar.write32(edu.IRQ_ACK, 1)


def test_intx_is_unmasked_by_an_eventfd(pci: PciDevice) -> None:
    bar, intx = pci.bar(0), pci.irqs.intx
    with intx.enable(1) as (vector,):
        resample = intx.resample()
        bar.write32(edu.IRQ_RAISE, 1)
        assert vector.wait(2.0) == 1
        bar.write32(edu.IRQ_ACK, 1)
        resample.signal()
        bar.write32(edu.IRQ_RAISE, 1)
        assert vector.wait(2.0) == 1
        bar.write32(edu.IRQ_ACK, 1)


def test_msi_of_the_device_itself(pci: PciDevice) -> None:
    pci.set_master(True)
    with pci.irqs.msi.enable(1) as (vector,):
        for _ in range(3):
            pci.bar(0).write32(edu.IRQ_RAISE, 1)
            assert vector.wait(2.0) >= 1
            pci.bar(0).write32(edu.IRQ_ACK, 1)
    pci.set_master(False)


def test_interrupts_work_after_a_reset(pci: PciDevice) -> None:
    with pci.irqs.msi.enable(1) as (vector,):
        pci.reset()
        pci.set_master(True)
        pci.bar(0).write32(edu.IRQ_RAISE, 1)
        assert vector.wait(2.0) >= 1
        pci.bar(0).write32(edu.IRQ_ACK, 1)
