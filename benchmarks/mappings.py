"""Benchmarks of DMA mappings on the real /dev/vfio: unmapping thousands, closing with thousands, pools."""

from __future__ import annotations

import ctypes
import mmap
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import vfio_user
from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user import AddressSpace, DmaMapping, testing
from vfio_user.iommu import UnmapBatch
from vfio_user.iommu.containers import ContainerBackend
from vfio_user.iommu.iommufd import IommufdBackend
from vfio_user.iommu.modes import IommuMode, available_modes
from vfio_user.kernel.mman import address_of

__all__ = ["benchmarks"]

_MS = 1e6
_COUNT = 10_000
_LARGE = 256 << 20
_PAGE = mmap.PAGESIZE
_IOVA = 1 << 32
"""Where the peer maps: away from what the address space chooses."""


class _Pages:
    """So many pages of memory that do not abut, so that each is a mapping of its own."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 2 * _COUNT * _PAGE)
        # One page more at a time than there is memory for would be another benchmark: all are there beforehand.
        self.memory.write(b"\1" * len(self.memory))
        base = address_of(memoryview(self.memory))
        self.vaddrs = array("Q", range(base, base + 2 * _COUNT * _PAGE, 2 * _PAGE))

    def map(self, space: AddressSpace) -> list[DmaMapping]:
        """Map them by the framework, one by one."""
        return [space.map_address(vaddr, _PAGE, keepalive=self.memory) for vaddr in self.vaddrs]


class _Peer:
    """The same requests in C, behind an address space's back; costs are in ms."""

    def __init__(self, space: AddressSpace, pages: _Pages) -> None:
        self._place = _kernel_side(space)
        self._vaddrs = ctypes.c_void_p(pages.vaddrs.buffer_info()[0])
        self._count = ctypes.c_long(_COUNT)
        self._iova = ctypes.c_uint64(_IOVA)
        self._map = build.cost("vfio", "map_pages_ns", _MS)
        self._unmap = build.cost("vfio", "unmap_pages_ns", _MS)
        self._unmap_all = build.cost("vfio", "unmap_all_ns", _MS)

    def map(self) -> float:
        return self._map(*self._place, self._vaddrs, self._count, self._iova)

    def unmap(self) -> float:
        return self._unmap(*self._place, self._count, self._iova)

    def unmap_all(self) -> float:
        return self._unmap_all(*self._place, self._count)


def _kernel_side(space: AddressSpace) -> tuple[int, ctypes.c_uint32]:
    """Give the file, and the address space in it; 0 for a container, which is one itself."""
    backend = space.backend
    if isinstance(backend, IommufdBackend):
        return backend.iommufd.fileno(), ctypes.c_uint32(backend.ioas.id)
    assert isinstance(backend, ContainerBackend)
    return backend.container.fd.fileno(), ctypes.c_uint32(0)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / _MS


@contextmanager
def _unmap(mode: IommuMode) -> Iterator[Pair]:
    pages = _Pages()
    # One mapping stays, so that it can't be done by unmapping all there is.
    with vfio_user.open(testing.device("edu").address, mode=mode) as pci, pci.dma_alloc(_PAGE):
        space = pci.address_space
        peer = _Peer(space, pages)

        def batched() -> float:
            mappings = pages.map(space)

            def run() -> None:
                with UnmapBatch() as batch:
                    batch.extend(mappings)

            return _timed(run)

        def one_by_one() -> float:
            peer.map()
            return peer.unmap()

        yield Pair(batched, one_by_one)


@contextmanager
def _close(mode: IommuMode) -> Iterator[Pair]:
    pages = _Pages()
    address = testing.device("edu").address

    def ours() -> float:
        with AddressSpace(mode) as space, vfio_user.open(address, address_space=space):
            mappings = pages.map(space)
            cost = _timed(space.close)
            assert all(mapping.ended for mapping in mappings[::100])
            return cost

    def peer() -> float:
        with AddressSpace(mode) as space, vfio_user.open(address, address_space=space):
            bare = _Peer(space, pages)
            bare.map()
            return bare.unmap_all()

    yield Pair(ours, peer)


@contextmanager
def _pool(mode: IommuMode) -> Iterator[Pair]:
    pages = _Pages()
    with vfio_user.open(testing.device("edu").address, mode=mode) as pci, pci.address_space.pool(_PAGE) as pool:
        peer = _Peer(pci.address_space, pages)
        pool.give_many(pool.take_many(_COUNT))  # a pool lives long: it has the memory that its user needs

        def ours() -> float:
            return _timed(lambda: pool.give_many(pool.take_many(_COUNT)))

        yield Pair(ours, lambda: peer.map() + peer.unmap())


@contextmanager
def _map_many(mode: IommuMode) -> Iterator[Pair]:
    pages = _Pages()
    with vfio_user.open(testing.device("edu").address, mode=mode) as pci, pci.dma_alloc(_PAGE):
        space = pci.address_space
        peer = _Peer(space, pages)

        def ours() -> float:
            start = time.perf_counter_ns()
            mapping = space.map_addresses(pages.vaddrs, _PAGE, keepalive=pages.memory)
            cost = (time.perf_counter_ns() - start) / _MS
            mapping.unmap()
            return cost

        def plain() -> float:
            cost = peer.map()
            peer.unmap()
            return cost

        yield Pair(ours, plain)


@contextmanager
def _map_large(mode: IommuMode) -> Iterator[Pair]:
    memory = mmap.mmap(-1, _LARGE)
    view = memoryview(memory)
    for at in range(0, _LARGE, _PAGE):
        view[at] = 1  # the same pages, which are there, for both
    bare = build.cost("vfio", "map_and_unmap_ns", _MS)
    with vfio_user.open(testing.device("edu").address, mode=mode) as pci, pci.dma_alloc(_PAGE):
        space = pci.address_space
        place = (
            *_kernel_side(space),
            ctypes.c_uint64(address_of(view)),
            ctypes.c_uint64(_LARGE),
            ctypes.c_uint64(_IOVA),
        )
        yield Pair(lambda: _timed(lambda: space.map(memory).unmap()), lambda: bare(*place))


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    for name, what, peer, goal, setup in (
        ("unmap-batch", "10,000 unmaps in a batch", "one ioctl() each, in C", 0.8, _unmap),
        ("close-many", "close with 10,000 mappings", "UNMAP_ALL in C", 1.05, _close),
        ("map-256m", "map and unmap 256 MiB", "two ioctl() in C", 1.02, _map_large),
        ("map-many", "10,000 maps in one call", "one ioctl() each, in C", 1.05, _map_many),
        ("pool", "10,000 buffers from a pool and back", "map and unmap each, in C", 0.05, _pool),
    ):
        for mode in available_modes():
            if mode in (IommuMode.IOMMUFD, IommuMode.TYPE1V2):
                yield Benchmark(
                    name=f"{name}-{mode.value}",
                    what=f"{what}, {mode.value}",
                    unit="ms",
                    peer=peer,
                    goal=goal,
                    setup=partial(setup, mode),
                    rounds=3,  # of 40,000 mappings each
                )
