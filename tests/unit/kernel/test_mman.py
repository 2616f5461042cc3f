"""Memory for DMA: aligned, zeroed, writable, and not shared with children by accident."""

from __future__ import annotations

import errno
import gc
import mmap
import os
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest.leaks import nothing_left
from tests.unit.forking import in_child
from vfio_user.errors import ArgumentError, VfioOSError
from vfio_user.kernel.mman import PAGE_SIZE, Backing, Memory, address_of, allocate, round_up

ORDINARY = (Backing.ANONYMOUS, Backing.MEMFD)
HUGE = {Backing.HUGE_2M: (2 << 20, "hugepages-2048kB"), Backing.HUGE_1G: (1 << 30, "hugepages-1048576kB")}


def release(memory: Memory) -> None:
    if memory.fd >= 0:
        os.close(memory.fd)


def mapped_kib() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE >> 10


@pytest.mark.parametrize("backing", ORDINARY)
@pytest.mark.parametrize("size", [1, PAGE_SIZE, PAGE_SIZE + 1, (2 << 20) - 1, 3 << 20])
def test_memory_is_whole_zeroed_pages_that_can_be_written(backing: Backing, size: int) -> None:
    memory = allocate(size, backing)
    try:
        assert memory.size == round_up(size, PAGE_SIZE)
        assert memory.address % PAGE_SIZE == 0
        assert memory.backing is backing
        assert not memory.view.readonly
        assert memory.view.format == "B"
        assert not any(memory.view[::97])
        memory.view[-1] = 7
        assert memory.view[-1] == 7
    finally:
        release(memory)


@pytest.mark.parametrize("backing", ORDINARY)
def test_nothing_is_left(backing: Backing) -> None:
    with nothing_left():
        before = mapped_kib()
        for _ in range(20):
            release(allocate(8 << 20, backing))
        assert mapped_kib() < before + (16 << 10)


def test_large_memory_sits_where_huge_pages_can_back_it() -> None:
    for size in (2 << 20, (2 << 20) + 1, 16 << 20):
        assert allocate(size).address % (2 << 20) == 0


def test_memory_file_holds_the_same_bytes() -> None:
    memory = allocate(PAGE_SIZE, Backing.MEMFD)
    try:
        memory.view[:4] = b"file"
        assert os.pread(memory.fd, 4, 0) == b"file"
        assert os.fstat(memory.fd).st_size == PAGE_SIZE
        assert not os.get_inheritable(memory.fd)
    finally:
        release(memory)
    assert memory.view.tobytes()[:4] == b"file", "the view outlives the file"


@pytest.mark.parametrize("backing", HUGE)
def test_huge_pages_or_the_way_to_get_some(backing: Backing) -> None:
    page, pool = HUGE[backing]
    free = Path(f"/sys/kernel/mm/hugepages/{pool}/free_hugepages")
    if free.exists() and int(free.read_text()) > 0:
        memory = allocate(1, backing)
        assert (memory.size, memory.address % page) == (page, 0)
        release(memory)
        return
    with nothing_left(), pytest.raises(VfioOSError, match=r"Reserve .*huge") as caught:
        allocate(page + 1, backing)
    assert f"allocate {2 * page} bytes ({backing.value})" in str(caught.value)
    assert "2" in caught.value.hint, "as many pages as are missing"


def test_no_memory_is_an_error_that_keeps_its_errno() -> None:
    with pytest.raises(VfioOSError) as caught:
        allocate(1 << 46)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("backing", ORDINARY)
@pytest.mark.parametrize("size", [1 << 63, 1 << 70])
def test_more_than_any_machine_has(backing: Backing, size: int) -> None:
    with nothing_left(), pytest.raises(VfioOSError, match=r"allocate"):
        allocate(size, backing)


def test_failure_after_the_file_was_made_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with nothing_left():
        monkeypatch.setattr(mmap, "mmap", refuse)
        with pytest.raises(VfioOSError, match="ENOMEM"):
            allocate(PAGE_SIZE, Backing.MEMFD)


@pytest.mark.parametrize("size", [0, -1])
def test_size_is_positive(size: int) -> None:
    with pytest.raises(ArgumentError, match=f"size {size} is not positive"):
        allocate(size)


def test_child_reads_zeros_and_the_parent_keeps_its_pages() -> None:
    memory = allocate(PAGE_SIZE)
    memory.view[:6] = b"parent"

    def child() -> bytes:
        seen = bytes(memory.view[:6])
        memory.view[:5] = b"child"
        return seen

    assert in_child(child) == repr(bytes(6))
    assert memory.view.tobytes()[:6] == b"parent"


def test_child_shares_a_memory_file() -> None:
    memory = allocate(PAGE_SIZE, Backing.MEMFD)
    try:
        memory.view[:6] = b"parent"
        assert in_child(lambda: bytes(memory.view[:6])) == repr(b"parent")
    finally:
        release(memory)


def test_address_is_the_one_that_numpy_sees() -> None:
    array = numpy.zeros(100, dtype="u4")
    assert address_of(array.data) == array.ctypes.data
    assert address_of(array.data[10:]) == array.ctypes.data + 40
    with mmap.mmap(-1, PAGE_SIZE) as mapping:
        view = memoryview(mapping)
        assert address_of(view) % PAGE_SIZE == 0
        view.release()


def test_address_of_read_only_memory() -> None:
    assert address_of(memoryview(b"constant")) > 0


@given(st.integers(0, 1 << 64), st.integers(0, 40).map(lambda shift: 1 << shift))
def test_round_up(value: int, unit: int) -> None:
    rounded = round_up(value, unit)
    assert rounded % unit == 0
    assert value <= rounded < value + unit
