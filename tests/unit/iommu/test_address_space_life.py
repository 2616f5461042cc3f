"""Address spaces: unmaps that fail, threads, and ends in every order."""

from __future__ import annotations

import gc
import mmap
import threading
import time
import weakref
from collections.abc import Callable

import numpy
import pytest

from tests.guest.leaks import nothing_left
from tests.unit.forking import in_child
from tests.unit.iommu.fake_backend import PAGE, FakeBackend
from vfio_user.addresses import PciAddress
from vfio_user.errors import ClosedError, ForkedError, VfioError, VfioIoctlError
from vfio_user.iommu import AddressSpace, DmaBuffer
from vfio_user.kernel.sysfs import PciFunction

FUNCTION = PciFunction(PciAddress(0, 2, 0, 0))


def refuse(*args: object) -> None:
    raise VfioIoctlError(22, "VFIO_IOMMU_UNMAP_DMA")


def run_all(*functions: Callable[[], object]) -> list[BaseException]:
    """Run each in a thread of its own; give what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        barrier.wait(10)
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return raised


# -- an unmap that is not confirmed keeps the memory


def test_short_unmap_keeps_mapping_and_memory(space: AddressSpace, backend: FakeBackend) -> None:
    memory = mmap.mmap(-1, PAGE)
    mapping = space.map(memory, iova=0x10_0000)
    backend.short = 0x800
    with pytest.raises(VfioError, match=r"unmapped 0x800 bytes of .*0x100000\.\.0x100fff.*; its memory is kept"):
        mapping.unmap()
    assert mapping.mapped
    assert mapping in space.mappings
    with pytest.raises(BufferError):
        memory.close()
    backend.short = 0
    mapping.unmap()
    assert mapping not in space.mappings
    memory.close()


def test_refused_unmap_keeps_a_buffer_open(space: AddressSpace, backend: FakeBackend) -> None:
    buffer = space.alloc(PAGE, backing="memfd")
    backend.before["unmap"] = refuse
    with pytest.raises(VfioIoctlError):
        buffer.close()
    assert not buffer.closed
    assert buffer.fileno() >= 0
    backend.before.clear()
    buffer.close()
    assert buffer.closed


def test_dropped_buffer_stays_until_it_is_unmapped(space: AddressSpace, backend: FakeBackend) -> None:
    array = numpy.frombuffer(mmap.mmap(-1, PAGE), dtype="u1")
    view = array.data
    alive = weakref.ref(array)
    space.map(view)
    del array, view
    gc.collect()
    assert alive() is not None, "the device can still write to it"
    assert space.unmap_all() == PAGE
    gc.collect()
    assert alive() is None


def test_iova_of_an_unconfirmed_unmap_is_not_given_to_another(space: AddressSpace, backend: FakeBackend) -> None:
    first = space.alloc(PAGE, iova_limit=2 * PAGE)
    backend.short = PAGE
    with pytest.raises(VfioError):
        first.close()
    backend.short = 0
    with pytest.raises(VfioError, match="no free IOVA range"):
        space.alloc(PAGE, iova_limit=2 * PAGE)
    first.close()
    assert space.alloc(PAGE, iova_limit=2 * PAGE).iova == first.iova


def test_unmap_all(space: AddressSpace, backend: FakeBackend) -> None:
    buffers = [space.alloc(PAGE) for _ in range(5)]
    assert space.unmap_all() == 5 * PAGE
    assert all(buffer.closed for buffer in buffers)
    assert backend.calls.count("unmap") == 0, "one call for all"
    for buffer in buffers:
        buffer.close()
    assert space.alloc(PAGE).iova == max(buffer.iova for buffer in buffers), "their IOVAs are free again"


def test_short_unmap_all_keeps_everything(space: AddressSpace, backend: FakeBackend) -> None:
    buffers = [space.alloc(PAGE) for _ in range(5)]
    backend.short = PAGE
    with pytest.raises(VfioError, match="unmapped 0x4000 bytes of 0x5000; the memory is kept"):
        space.unmap_all()
    assert len(space.mappings) == 5
    assert not any(buffer.closed for buffer in buffers)
    backend.short = 0
    assert space.unmap_all() == 5 * PAGE


# -- ends in every order


@pytest.mark.parametrize("space_first", [True, False])
@pytest.mark.parametrize("buffer_first", [True, False])
def test_close_in_any_order(backend: FakeBackend, space_first: bool, buffer_first: bool) -> None:
    with nothing_left():
        space = AddressSpace("type1v2")
        device = space.attach(FUNCTION)
        buffer = space.alloc(PAGE, backing="memfd")

        def close_device() -> None:
            device.close()
            space.detach()

        ends = [space.close, close_device] if space_first else [close_device, space.close]
        ends.insert(0 if buffer_first else 2, buffer.close)
        while ends:
            ends.pop(0)()
        assert backend.closed
        assert buffer.closed
        del buffer


def test_back_end_stays_open_until_the_last_device_goes(backend: FakeBackend) -> None:
    space = AddressSpace("type1v2")
    devices = [space.attach(FUNCTION) for _ in range(3)]
    space.close()
    for device in devices:
        assert not backend.closed
        device.close()
        space.detach()
    assert backend.closed


def test_close_that_is_not_confirmed_ends_with_the_last_device(backend: FakeBackend) -> None:
    space = AddressSpace("type1v2")
    device = space.attach(FUNCTION)
    buffer = space.alloc(PAGE)
    backend.short = PAGE
    with pytest.raises(VfioError, match="the memory is kept"):
        space.close()
    assert space.closed
    assert space.mappings == (buffer.mapping,), "the device is attached and may write to it"
    device.close()
    space.detach()
    assert backend.closed
    assert buffer.closed
    buffer.close()


def test_attach_that_fails_half_way_closes_the_device(backend: FakeBackend) -> None:
    with nothing_left(), AddressSpace("type1v2") as space:
        backend.before["info"] = refuse
        with pytest.raises(VfioIoctlError):
            space.attach(FUNCTION)
    assert backend.closed


# -- threads


def test_threads_map_and_unmap_at_once(space: AddressSpace, backend: FakeBackend) -> None:
    backend.before["map"] = backend.before["unmap"] = lambda *args: time.sleep(0.0005)

    def churn() -> None:
        for _ in range(30):
            with space.alloc(PAGE), space.alloc(2 * PAGE):
                pass

    assert run_all(*[churn] * 4) == []
    assert backend.mapped == {}
    assert space.mappings == ()


def test_maps_of_two_threads_run_at_the_same_time(space: AddressSpace, backend: FakeBackend) -> None:
    both = threading.Barrier(2)
    backend.before["map"] = lambda *args: both.wait(10)
    assert run_all(lambda: space.alloc(PAGE), lambda: space.alloc(PAGE)) == []


def test_threads_unmap_the_same_mapping(space: AddressSpace, backend: FakeBackend) -> None:
    backend.before["unmap"] = lambda *args: time.sleep(0.001)
    for _ in range(20):
        buffer = space.alloc(PAGE, backing="memfd")
        assert run_all(*[buffer.close] * 3) == []
    assert backend.calls.count("unmap") == 20


def test_unmap_all_beside_threads_that_map_and_unmap(space: AddressSpace, backend: FakeBackend) -> None:
    backend.before["map"] = backend.before["unmap"] = lambda *args: time.sleep(0.0002)

    def churn() -> None:
        for _ in range(40):
            space.alloc(PAGE).close()

    def sweep() -> None:
        for _ in range(40):
            space.unmap_all()

    assert run_all(churn, churn, sweep) == []
    assert {mapping.iova for mapping in space.mappings} == set(backend.mapped)


def test_close_beside_threads_that_map(backend: FakeBackend) -> None:
    for _ in range(10):
        space = AddressSpace("type1v2")
        device = space.attach(FUNCTION)
        backend.before["map"] = lambda *args: time.sleep(0.0002)

        kept: list[DmaBuffer] = []

        def churn(space: AddressSpace = space, kept: list[DmaBuffer] = kept) -> None:
            for _ in range(10_000):
                kept.append(space.alloc(PAGE))

        def close(space: AddressSpace = space) -> None:
            time.sleep(0.003)
            space.close()

        assert [type(error) for error in run_all(churn, churn, close)] == [ClosedError, ClosedError]
        assert backend.mapped == {}, "nothing is mapped, though the device is still there"
        assert all(buffer.closed for buffer in kept)
        device.close()
        space.detach()
        backend.closed = False


# -- fork


def test_child_can_leave_the_block_but_not_use_it(space: AddressSpace, backend: FakeBackend) -> None:
    buffer = space.alloc(PAGE)

    def forked(*args: object) -> None:
        raise ForkedError("opened by the parent process")

    def child() -> tuple[bool, bool]:
        backend.before |= {"map": forked, "unmap": forked, "unmap_all": forked}
        with pytest.raises(ForkedError):
            space.alloc(PAGE)
        with pytest.raises(ForkedError):
            buffer.close()
        space.close()
        return space.closed, backend.closed

    assert in_child(child) == repr((True, False))
    assert not buffer.closed
    buffer.close()
