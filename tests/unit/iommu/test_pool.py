"""Pools: no buffer is out twice, and few mappings serve many buffers."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.iommu.fake_backend import PAGE, FakeBackend
from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError, ClosedError, VfioError, VfioIoctlError
from vfio_user.iommu import AddressSpace, DmaPool, address_space
from vfio_user.iommu.pool import PoolBuffer
from vfio_user.kernel.sysfs import PciFunction


class TakeAndGive(RuleBasedStateMachine):
    """Whatever order buffers are taken and given back in, each belongs to one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = FakeBackend()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(address_space, "open_backend", lambda mode: self.backend)
            self.space = AddressSpace("type1v2")
        self.space.attach(PciFunction(PciAddress(0, 1, 0, 0))).close()
        self.pool = self.space.pool(512, chunk_size=PAGE)
        self.out: list[PoolBuffer] = []
        self.stamp = 0

    @rule(count=st.integers(1, 20))
    def take(self, count: int) -> None:
        taken = self.pool.take_many(count)
        assert len(taken) == count
        for buffer in taken:
            self.stamp += 1
            buffer[:8] = buffer[-8:] = self.stamp.to_bytes(8, "little")
        self.out += taken

    @precondition(lambda self: bool(self.out))
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        returned = data.draw(st.lists(st.sampled_from(self.out), min_size=1, unique=True))
        self.pool.give_many(returned)
        self.out = [buffer for buffer in self.out if buffer not in returned]
        with pytest.raises(ArgumentError, match="is not out of this pool"):
            self.pool.give_many([*self.out, returned[0]])

    @precondition(lambda self: bool(self.out))
    @rule(data=st.data())
    def name_one_twice(self, data: st.DataObject) -> None:
        buffer = data.draw(st.sampled_from(self.out))
        with pytest.raises(ArgumentError, match="named twice; none was given back"):
            self.pool.give_many([*self.out, buffer])

    @invariant()
    def buffers_are_apart(self) -> None:
        stamps = {bytes(buffer[:8]) for buffer in self.out}
        assert stamps == {bytes(buffer[-8:]) for buffer in self.out}
        assert len(stamps) == len({buffer.iova for buffer in self.out}) == len(self.out)
        assert self.pool.num_taken == len(self.out)

    @invariant()
    def each_has_its_iova(self) -> None:
        for buffer in self.out:
            chunk = next(first for first in self.backend.mapped if first <= buffer.iova < first + PAGE)
            vaddr = self.backend.mapped[chunk][0]
            assert buffer.array().ctypes.data - vaddr == buffer.iova - chunk

    @invariant()
    def no_more_chunks_than_needed(self) -> None:
        assert len(self.backend.mapped) * PAGE == (self.pool.num_taken + self.pool.num_free) * 512

    def teardown(self) -> None:
        self.pool.close()
        assert self.backend.mapped == {}
        self.space.close()
        self.space.detach()


TakeAndGive.TestCase.settings = settings(max_examples=30, stateful_step_count=25)
TestTakeAndGive = TakeAndGive.TestCase


@pytest.fixture
def pool(space: AddressSpace) -> DmaPool:
    return space.pool(1000, chunk_size=2 * PAGE)


@pytest.mark.parametrize(
    ("asked", "given"), [(1, 64), (64, 64), (65, 128), (1000, 1024), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20)]
)
def test_size_is_a_power_of_two(space: AddressSpace, asked: int, given: int) -> None:
    with space.pool(asked, chunk_size=1) as pool, pool.take() as buffer:
        assert pool.buffer_size == buffer.size == given
        assert buffer.iova % min(given, PAGE) == 0, "small buffers do not cross pages"


def test_buffers_come_in_the_order_of_their_addresses(pool: DmaPool) -> None:
    first, *rest = [pool.take().iova, pool.take().iova, *(buffer.iova for buffer in pool.take_many(4))]
    assert rest == [first + 1024 * number for number in range(1, 6)]


def test_mapping_waits_for_the_first_buffer(pool: DmaPool, backend: FakeBackend) -> None:
    assert (pool.num_free, pool.num_taken, backend.mapped) == (0, 0, {})
    buffer = pool.take()
    assert (pool.num_free, pool.num_taken, len(backend.mapped)) == (7, 1, 1)
    assert repr(pool) == "<DmaPool 1024 bytes, 1 taken, 7 free>"
    assert repr(buffer).startswith("<PoolBuffer 0x")


def test_block_gives_the_buffer_back(pool: DmaPool) -> None:
    with pool.take() as buffer:
        iova = buffer.iova
    assert pool.num_taken == 0
    assert pool.take().iova == iova, "the one that was used last is in the cache"


def test_buffer_of_another_pool(space: AddressSpace, pool: DmaPool) -> None:
    with space.pool(64) as other:
        stranger = other.take()
        with pytest.raises(ArgumentError, match="is not out of this pool"):
            pool.give(stranger)


def test_limit_of_the_device(space: AddressSpace) -> None:
    with space.pool(64, iova_limit=1 << 20) as pool, pytest.raises(VfioError, match="below 0x100000"):
        pool.take()
    with space.pool(64, iova_limit=1 << 20, chunk_size=PAGE) as pool:
        assert pool.take().iova < 1 << 20


def test_failure_takes_nothing(pool: DmaPool, backend: FakeBackend) -> None:
    pool.take_many(3)

    def refuse(*args: object) -> None:
        raise VfioIoctlError(12, "VFIO_IOMMU_MAP_DMA")

    backend.before["map"] = refuse
    with pytest.raises(VfioIoctlError):
        pool.take_many(6)
    assert (pool.num_taken, pool.num_free) == (3, 5)
    assert len(pool.take_many(5)) == 5


def test_close_unmaps_what_is_out(pool: DmaPool, backend: FakeBackend) -> None:
    buffer = pool.take_many(20)[7]
    assert len(backend.mapped) == 3
    pool.close()
    pool.close()
    assert backend.mapped == {}
    assert repr(pool) == "<DmaPool 1024 bytes, 0 taken, 0 free closed>"
    with pytest.raises(ClosedError, match="the pool is closed"):
        pool.take()
    buffer.close()


def test_close_tries_every_chunk(pool: DmaPool, backend: FakeBackend) -> None:
    pool.take_many(20)
    backend.short = PAGE
    with pytest.raises(ExceptionGroup, match="some chunks of the pool were not unmapped") as caught:
        pool.close()
    assert len(caught.value.exceptions) == 3
    assert len(backend.mapped) == 3
    backend.short = 0


@pytest.mark.parametrize(("size", "chunk"), [(0, 4096), (-1, 4096), (64, 0), (64, -1)])
def test_sizes_that_can_not_be(space: AddressSpace, size: int, chunk: int) -> None:
    with pytest.raises(ArgumentError, match="must be positive"):
        space.pool(size, chunk_size=chunk)


@pytest.mark.parametrize("count", [0, -1])
def test_count_is_positive(pool: DmaPool, count: int) -> None:
    with pytest.raises(ArgumentError, match="not positive"):
        pool.take_many(count)


def test_threads_share_a_pool(pool: DmaPool) -> None:
    clashes: list[bytes] = []

    def churn(name: bytes) -> None:
        for _ in range(200):
            with pool.take() as buffer:
                buffer[:8] = name * 8
                if bytes(buffer[:8]) != name * 8:
                    clashes.append(name)

    threads = [threading.Thread(target=churn, args=(bytes([65 + n]),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not clashes
    assert pool.num_taken == 0
