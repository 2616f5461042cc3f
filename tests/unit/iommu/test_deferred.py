"""Deferred unmaps: bounded, nothing used again before its end, nothing lost."""

from __future__ import annotations

import gc
import mmap
import threading
import time
import weakref
from collections.abc import Callable

import numpy
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.guest.leaks import nothing_left
from tests.unit.forking import in_child
from tests.unit.iommu.fake_backend import PAGE, FakeBackend
from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError, ClosedError, ForkedError
from vfio_user.iommu import AddressSpace, DmaBuffer, address_space
from vfio_user.kernel.sysfs import PciFunction


def soon(condition: Callable[[], bool]) -> bool:
    """Wait until something holds that another thread brings about."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


class Queue(RuleBasedStateMachine):
    """What was deferred is mapped until a flush, and its IOVA is nobody else's."""

    LIMIT, MAX_BYTES = 6, 10 * PAGE

    def __init__(self) -> None:
        super().__init__()
        self.backend = FakeBackend()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(address_space, "open_backend", lambda mode: self.backend)
            self.space = AddressSpace("type1v2")
        self.space.attach(PciFunction(PciAddress(0, 1, 0, 0))).close()
        self.queue = self.space.deferred(limit=self.LIMIT, max_bytes=self.MAX_BYTES, max_delay=None)
        self.live: list[DmaBuffer] = []
        self.waiting: list[DmaBuffer] = []

    @rule(pages=st.integers(1, 4))
    def map(self, pages: int) -> None:
        buffer = self.space.alloc(pages * PAGE)
        for other in (*self.live, *(each for each in self.waiting if not each.closed)):
            assert buffer.iova + buffer.size <= other.iova or other.iova + other.size <= buffer.iova
        self.live.append(buffer)

    @precondition(lambda self: bool(self.live))
    @rule(data=st.data(), as_mapping=st.booleans(), twice=st.booleans())
    def defer(self, data: st.DataObject, as_mapping: bool, twice: bool) -> None:
        buffer = data.draw(st.sampled_from(self.live))
        self.live.remove(buffer)
        self.waiting.append(buffer)
        for _ in range(1 + twice):
            self.queue.unmap(buffer.mapping if as_mapping else buffer)
        size = sum(each.size for each in self.waiting)
        if len(self.waiting) >= self.LIMIT or size >= self.MAX_BYTES:
            self.waiting.clear()

    @precondition(lambda self: bool(self.waiting))
    @rule(data=st.data())
    def close_meanwhile(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).close()

    @rule()
    def flush(self) -> None:
        size = sum(each.size for each in self.waiting if not each.closed)
        assert self.queue.flush() == size
        self.waiting.clear()

    @invariant()
    def mapped_until_the_flush(self) -> None:
        open_ = [each for each in (*self.live, *self.waiting) if not each.closed]
        assert all(not each.closed for each in self.live)
        assert set(self.backend.mapped) == {each.iova for each in open_}
        assert self.queue.num_pending == len(self.waiting) < self.LIMIT
        assert self.queue.num_bytes == sum(each.size for each in self.waiting) < self.MAX_BYTES

    def teardown(self) -> None:
        self.queue.close()
        assert self.queue.num_pending == 0
        assert set(self.backend.mapped) == {each.iova for each in self.live}
        self.space.close()
        self.space.detach()


Queue.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestQueue = Queue.TestCase


def test_one_request_for_many(space: AddressSpace, backend: FakeBackend) -> None:
    space.alloc(PAGE)
    with space.deferred(max_delay=None) as later:
        buffers = [space.alloc(PAGE) for _ in range(100)]
        for buffer in buffers:
            later.unmap(buffer)
        assert not any(buffer.closed for buffer in buffers)
        assert backend.calls.count("unmap") == 0
        assert repr(later) == "<DeferredUnmap 100 waiting, 0x64000 bytes>"
    assert all(buffer.closed for buffer in buffers)
    assert backend.calls.count("unmap") == 1
    assert repr(later).endswith(" closed>")


def test_memory_is_kept_until_the_flush(space: AddressSpace) -> None:
    array = numpy.frombuffer(mmap.mmap(-1, PAGE), dtype="u1")
    alive = weakref.ref(array)
    with space.deferred(max_delay=None) as later:
        later.unmap(space.map(array.data))
        del array
        gc.collect()
        assert alive() is not None
        later.flush()
        assert alive() is None


def test_memory_files_are_closed_by_the_flush(space: AddressSpace) -> None:
    with nothing_left(), space.deferred(max_delay=None) as later:
        for _ in range(3):
            later.unmap(space.alloc(PAGE, backing="memfd"))


def test_the_oldest_waits_no_longer_than_it_may(space: AddressSpace, backend: FakeBackend) -> None:
    with space.deferred(max_delay=0.02) as later:
        for _ in range(3):
            first, second = space.alloc(PAGE), space.alloc(PAGE)
            later.unmap(first)
            later.unmap(second)
            assert soon(lambda first=first, second=second: first.closed and second.closed)  # type: ignore[misc]
            assert later.num_pending == 0
    assert backend.mapped == {}


def test_the_thread_ends_without_work_and_comes_back(space: AddressSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.iommu.deferred._IDLE", 0.01)
    before = threading.active_count()
    with space.deferred(max_delay=0.001) as later:
        for _ in range(3):
            buffer = space.alloc(PAGE)
            later.unmap(buffer)
            assert soon(lambda buffer=buffer: buffer.closed)  # type: ignore[misc]
            assert soon(lambda: threading.active_count() == before)


def test_failure_in_the_background_is_raised_by_the_next_call(space: AddressSpace, backend: FakeBackend) -> None:
    with space.deferred(max_delay=0.001) as later:
        bad, good = space.alloc(PAGE), space.alloc(PAGE)
        backend.refused = {bad.iova}
        later.unmap(bad)
        assert soon(lambda: later.num_pending == 0 and bool(later._failures))
        with pytest.raises(ExceptionGroup, match="deferred unmaps failed") as caught:
            later.unmap(good)
        assert len(caught.value.exceptions) == 1
        assert good.closed
        assert not bad.closed
        backend.refused = set()
        later.unmap(bad)
    assert bad.closed


def test_failure_at_the_end_is_raised_there(space: AddressSpace, backend: FakeBackend) -> None:
    later = space.deferred(max_delay=None)
    buffers = [space.alloc(PAGE) for _ in range(3)]
    for buffer in buffers:
        later.unmap(buffer)
    backend.refused = {buffers[1].iova}
    with pytest.raises(ExceptionGroup):
        later.close()
    assert [buffer.closed for buffer in buffers] == [True, False, True]
    backend.refused = set()
    later.close()


def test_the_space_ends_its_queues(backend: FakeBackend) -> None:
    with AddressSpace("type1v2") as space:
        device = space.attach(PciFunction(PciAddress(0, 1, 0, 0)))
        later = space.deferred(max_delay=60)
        buffer = space.alloc(PAGE, backing="memfd")
        later.unmap(buffer)
    assert buffer.closed
    assert later.closed
    assert backend.calls.count("unmap_all") == 1
    assert backend.calls.count("unmap") == 0
    with pytest.raises(ClosedError):
        later.unmap(buffer)
    later.close()
    buffer.close()
    device.close()
    space.detach()
    assert soon(lambda: not any("deferred" in thread.name for thread in threading.enumerate()))


def test_what_does_not_belong_is_refused(space: AddressSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space, "open_backend", lambda mode: FakeBackend())
    other = AddressSpace("type1v2")
    other.attach(PciFunction(PciAddress(0, 1, 0, 0))).close()
    with space.deferred() as later:
        with pytest.raises(ArgumentError, match="neither a DmaMapping nor a DmaBuffer"):
            later.unmap(b"")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="of another address space"):
            later.unmap(other.alloc(PAGE))
    other.close()


@pytest.mark.parametrize(
    ("limit", "max_bytes", "max_delay"), [(0, 1, None), (1, 0, None), (1, 1, 0.0), (1, 1, -1.0), (1, 1, 1e9)]
)
def test_limits_that_can_not_be(space: AddressSpace, limit: int, max_bytes: int, max_delay: float | None) -> None:
    with pytest.raises(ArgumentError):
        space.deferred(limit=limit, max_bytes=max_bytes, max_delay=max_delay)


def test_threads_map_and_defer(space: AddressSpace, backend: FakeBackend) -> None:
    errors: list[BaseException] = []
    with space.deferred(limit=16, max_delay=0.001) as later:

        def churn() -> None:
            try:
                for _ in range(200):
                    later.unmap(space.alloc(PAGE))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=churn) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert backend.mapped == {}
    assert backend.calls.count("unmap") + backend.calls.count("unmap_all") < 800


def test_child_leaves_its_parents_mappings_alone(space: AddressSpace, backend: FakeBackend) -> None:
    buffer = space.alloc(PAGE)
    later = space.deferred(max_delay=None)
    later.unmap(buffer)

    def forked(*args: object) -> None:
        raise ForkedError("opened by the parent process")

    def child() -> int:
        backend.before |= {"unmap": forked, "unmap_all": forked}
        later.close()
        return later.num_pending

    assert in_child(child) == repr(0)
    assert not buffer.closed
    later.close()
    assert buffer.closed
