"""Unmapping many at once: few requests, all failures together, and no memory freed that a device may reach."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from tests.guest.leaks import nothing_left
from tests.unit.forking import in_child
from tests.unit.iommu.fake_backend import PAGE, FakeBackend
from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError, ClosedError, ForkedError, VfioError
from vfio_user.iommu import AddressSpace, DmaBuffer, DmaMapping, UnmapBatch, address_space
from vfio_user.iommu.suspend import resume, suspend
from vfio_user.kernel.sysfs import PciFunction


@pytest.fixture
def other_backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def other(other_backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddressSpace]:
    monkeypatch.setattr(address_space, "open_backend", lambda mode: other_backend)
    with AddressSpace("type1v2") as space:
        space.attach(PciFunction(PciAddress(0, 2, 0, 0))).close()
        yield space
    space.detach()


def test_neighbours_go_by_one_request(space: AddressSpace, backend: FakeBackend) -> None:
    buffers = [space.alloc(PAGE) for _ in range(10)]
    stays = space.alloc(PAGE)
    assert space.unmap_many(buffers) == 10 * PAGE
    assert backend.calls.count("unmap") == 1
    assert all(buffer.closed for buffer in buffers)
    assert space.mappings == (stays.mapping,)


def test_everything_goes_by_one_request_wherever_it_is(space: AddressSpace, backend: FakeBackend) -> None:
    mappings = [space.alloc(PAGE, iova=iova).mapping for iova in (0x10_0000, 0x20_0000, 0x30_0000)]
    assert space.unmap_many(mappings) == 3 * PAGE
    assert [call for call in backend.calls if call.startswith("unmap")] == ["unmap_all"]
    assert space.mappings == ()


@pytest.mark.parametrize("how", ["one", "many", "everything", "batch", "close"])
def test_what_the_kernel_has_ended_by_itself_is_unmapped(space: AddressSpace, backend: FakeBackend, how: str) -> None:
    """As when the last device of a container is unplugged: every request is refused from then on."""
    buffers = [space.alloc(PAGE) for _ in range(4)]
    backend.refused = {buffer.iova for buffer in buffers}
    with pytest.raises((VfioError, ExceptionGroup)):
        space.unmap_many(buffers[:1])
    assert not buffers[0].closed
    backend.emptied = True
    if how == "one":
        for buffer in buffers:
            buffer.close()
    elif how == "many":
        assert space.unmap_many(buffers[:3]) == 3 * PAGE
        buffers[3].close()
    elif how == "everything":
        assert space.unmap_all() == 4 * PAGE
    elif how == "batch":
        with UnmapBatch() as batch:
            batch.extend(buffers)
    else:
        space.close()
    assert all(buffer.closed for buffer in buffers)
    assert space.mappings == ()


def test_iovas_are_free_again(space: AddressSpace) -> None:
    space.alloc(PAGE)
    buffers = [space.alloc(PAGE) for _ in range(4)]
    space.unmap_many(buffers[1:])
    assert [space.alloc(PAGE).iova for _ in range(3)] == [buffer.iova for buffer in buffers[1:]]


def test_memory_files_are_closed_with_their_buffers(space: AddressSpace) -> None:
    space.alloc(PAGE)
    with nothing_left():
        buffers = [space.alloc(PAGE, backing="memfd") for _ in range(3)]
        space.unmap_many(buffers)
        for buffer in buffers:
            with pytest.raises(ClosedError):
                buffer.fileno()
        del buffers, buffer


def test_ended_and_repeated_ones_are_left_out(space: AddressSpace, backend: FakeBackend) -> None:
    buffers = [space.alloc(PAGE) for _ in range(4)]
    buffers[0].close()
    backend.calls.clear()
    wanted: list[DmaMapping | DmaBuffer] = [
        buffers[0],
        buffers[1],
        buffers[1].mapping,
        buffers[0].mapping,
        buffers[2],
        buffers[2],
    ]
    assert space.unmap_many(wanted) == 2 * PAGE
    assert backend.calls == ["unmap"]
    assert space.unmap_many([]) == 0
    assert space.unmap_many(wanted) == 0
    assert backend.calls == ["unmap"]


@pytest.mark.parametrize("garbage", [None, 17, b"abc", [], numpy.zeros(4)])
def test_what_is_no_mapping_is_refused_before_anything_is_done(space: AddressSpace, garbage: Any) -> None:
    mixed: list[Any] = [space.alloc(PAGE), space.alloc(PAGE), garbage]
    with pytest.raises(ArgumentError, match="neither a DmaMapping nor a DmaBuffer"):
        space.unmap_many(mixed)
    with pytest.raises(ArgumentError, match="neither a DmaMapping nor a DmaBuffer"):
        UnmapBatch().extend(mixed)
    assert len(space.mappings) == 2


def test_mappings_of_another_space_are_refused_before_anything_is_done(
    space: AddressSpace, other: AddressSpace
) -> None:
    ours, theirs = space.alloc(PAGE), other.alloc(PAGE)
    with pytest.raises(ArgumentError, match="of another address space"):
        space.unmap_many([ours, theirs])
    assert ours.mapping.mapped
    assert theirs.mapping.mapped


def test_all_failures_come_together_and_keep_their_memory(space: AddressSpace, backend: FakeBackend) -> None:
    arrays = [numpy.frombuffer(mmap.mmap(-1, PAGE), dtype="u1") for _ in range(6)]
    alive = [weakref.ref(array) for array in arrays]
    mappings = [space.map(array.data) for array in arrays]
    del arrays
    backend.refused = {mappings[1].iova, mappings[4].iova}
    with pytest.raises(ExceptionGroup, match="some mappings were not unmapped") as caught:
        space.unmap_many(mappings)
    assert len(caught.value.exceptions) == 2
    assert all("its memory is kept" in error.__notes__[0] for error in caught.value.exceptions)
    del caught
    gc.collect()
    assert [index for index, array in enumerate(alive) if array() is not None] == [1, 4]
    assert [each.mapped for each in mappings] == [False, True, False, False, True, False]
    backend.refused = set()
    assert space.unmap_many(mappings) == 2 * PAGE


def test_what_is_not_confirmed_is_kept(space: AddressSpace, backend: FakeBackend) -> None:
    stays = space.alloc(PAGE)
    mappings = [space.alloc(PAGE).mapping for _ in range(3)]
    backend.stuck = {mappings[1].iova}
    with pytest.raises(ExceptionGroup) as caught:
        space.unmap_many(mappings)
    assert "the kernel unmapped 0x0 bytes of" in str(caught.value.exceptions[0])
    assert mappings[1].mapped
    assert not stays.closed
    backend.stuck = set()
    for each in space.mappings:  # whatever else the kernel had not ended
        backend.mapped[each.iova] = (0, each.size, True, True)
    assert space.unmap_all() == sum(each.size for each in (*mappings, stays.mapping))


def test_a_short_answer_is_made_good_by_the_members(space: AddressSpace, backend: FakeBackend) -> None:
    space.alloc(PAGE)
    mappings = [space.alloc(PAGE).mapping for _ in range(3)]
    backend.stuck = {mappings[1].iova}

    def unstick(iova: int, size: int) -> None:
        if size == PAGE:
            backend.stuck = set()

    backend.before["unmap"] = unstick
    assert space.unmap_many(mappings) == 3 * PAGE
    assert not any(each.mapped for each in mappings)


def test_finalisers_may_unmap(space: AddressSpace, backend: FakeBackend) -> None:
    inner = [space.alloc(PAGE).mapping, space.alloc(PAGE).mapping]

    class Owner:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            inner[self.number].unmap()

    for number in range(2):
        memory = mmap.mmap(-1, PAGE)
        outer = space.map_address(numpy.frombuffer(memory, "u1").ctypes.data, PAGE, keepalive=(memory, Owner(number)))
        if number:
            space.unmap_many([outer])
        else:
            outer.unmap()
    assert not any(each.mapped for each in inner)


def test_suspended_mappings_end_without_a_request(space: AddressSpace, backend: FakeBackend) -> None:
    mappings = [space.alloc(PAGE).mapping for _ in range(4)]
    suspend(mappings[:2])
    assert backend.calls.count("unmap") == 1
    assert [each.mapped for each in mappings] == [False, False, True, True]
    assert space.unmap_many(mappings) == 2 * PAGE
    assert all(each.ended for each in mappings)
    assert backend.mapped == {}
    resume(mappings[0])
    assert backend.mapped == {}
    assert space.alloc(4 * PAGE).iova == min(each.iova for each in mappings), "all IOVAs are free again"


def test_unmap_all_counts_suspended_mappings_as_away(space: AddressSpace) -> None:
    mappings = [space.alloc(PAGE).mapping for _ in range(3)]
    suspend(mappings[:1])
    assert space.unmap_all() == 2 * PAGE
    assert all(each.ended for each in mappings)


def test_batch_takes_mappings_of_several_spaces(
    space: AddressSpace, other: AddressSpace, backend: FakeBackend, other_backend: FakeBackend
) -> None:
    space.alloc(PAGE)
    mixed = [owner.alloc(PAGE) for _ in range(4) for owner in (space, other)]
    with UnmapBatch() as batch:
        batch.add(mixed[0])
        batch.extend(mixed[1:])
        assert len(batch) == 8
        assert repr(batch) == "<UnmapBatch 8 to unmap>"
    assert all(buffer.closed for buffer in mixed)
    assert backend.calls.count("unmap") == 1
    assert other_backend.calls.count("unmap_all") == 1


def test_batch_keeps_what_failed_and_tries_the_rest(
    space: AddressSpace, other: AddressSpace, backend: FakeBackend
) -> None:
    space.alloc(PAGE)
    ours, theirs = [space.alloc(PAGE) for _ in range(3)], other.alloc(PAGE)
    ranges: list[tuple[int, int]] = []
    windows: list[str] = []

    def refuse(items: object) -> None:
        raise VfioError("not now")

    batch = UnmapBatch()
    batch.extend([*ours, theirs])
    batch.add_range(0x2000, 0x1000, by=lambda address, size: ranges.append((address, size)))
    batch.add_windows(["a", "b"], by=refuse)
    batch.add_windows(["c"], by=windows.extend)
    backend.refused = {ours[1].iova}
    with pytest.raises(ExceptionGroup, match="not everything was unmapped") as caught:
        batch.run()
    assert len(caught.value.exceptions) == 2
    assert [buffer.closed for buffer in (*ours, theirs)] == [True, False, True, True]
    assert (ranges, windows) == ([(0x2000, 0x1000)], ["c"])
    assert len(batch) == 3
    backend.refused = set()
    with pytest.raises(ExceptionGroup):
        batch.run()
    assert ours[1].closed
    assert len(batch) == 2


def test_ranges_that_abut_or_overlap_are_one(space: AddressSpace) -> None:
    seen: list[tuple[int, int]] = []

    def by(address: int, size: int) -> None:
        seen.append((address, size))
        if address == 0x9000:
            raise OSError(22, "refused")

    batch = UnmapBatch()
    for address, size in ((0x3000, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000), (0x3800, 0x1000), (0x9000, 0x1000)):
        batch.add_range(address, size, by)
    with pytest.raises(ExceptionGroup):
        batch.run()
    assert seen == [(0x1000, 0x3800), (0x9000, 0x1000)]
    assert len(batch) == 1
    with pytest.raises(ArgumentError):
        batch.add_range(0x1000, 0, by)


def test_threads_unmap_many_beside_others(space: AddressSpace, backend: FakeBackend) -> None:
    errors: list[BaseException] = []

    def churn(many: bool) -> None:
        try:
            for _ in range(30):
                buffers = [space.alloc(PAGE) for _ in range(5)]
                if many:
                    assert space.unmap_many(buffers) == 5 * PAGE
                else:
                    for buffer in buffers:
                        buffer.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=churn, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert backend.mapped == {}


def test_closed_space(space: AddressSpace) -> None:
    buffer = space.alloc(PAGE)
    space.close()
    with pytest.raises(ClosedError):
        space.unmap_many([buffer])
    with UnmapBatch() as batch:
        batch.add(buffer)


def test_child_does_not_unmap_what_is_its_parents(space: AddressSpace, backend: FakeBackend) -> None:
    space.alloc(PAGE)
    buffers = [space.alloc(PAGE) for _ in range(3)]

    def forked(*args: object) -> None:
        raise ForkedError("opened by the parent process")

    def child() -> bool:
        backend.before |= {"unmap": forked, "unmap_all": forked}
        with pytest.raises(ForkedError):
            space.unmap_many(buffers)
        batch = UnmapBatch()
        batch.extend(buffers)
        with pytest.raises(ExceptionGroup) as caught:
            batch.run()
        return isinstance(caught.value.exceptions[0], ForkedError)

    assert in_child(child) == repr(True)
    assert not any(buffer.closed for buffer in buffers)
