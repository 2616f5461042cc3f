"""Benchmarks of a large BAR on the real /dev/vfio: mapping, touching, zapping."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import vfio_user
from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user import Region, testing
from vfio_user.device.window import map_regions
from vfio_user.memory import Window

__all__ = ["benchmarks"]

_BAR = 2  # of ivshmem: its memory
_MS = 1e6
_HUGE = 2 << 20


class _Bar:
    """A region of an open device, and the two ways of mapping it and touching every page, with costs in ms."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._map_and_touch = build.cost("vfio", "map_and_touch_ns", _MS)
        self._touch = build.cost("vfio", "touch_ns", _MS)
        self._unmap = build.cost("vfio", "unmap_ns", _MS)
        self.size = ctypes.c_size_t(region.size)
        self.lucky = 0
        """How often the kernel chose an address that suits huge pages; some kernels do (6.7 to 6.12)."""

    def map_window(self) -> tuple[float, Window]:
        """Map it as the opening of a device does."""
        vdev, info = self._region.vdev, self._region.info
        regions = {info.index: (info, vdev.ops.mappable_areas(vdev, info))}
        start = time.perf_counter_ns()
        window, accessors = map_regions(vdev.fileno(), vdev.name, regions)
        cost = (time.perf_counter_ns() - start) / _MS
        assert window is not None
        return cost + self._touch(ctypes.c_void_p(accessors[info.index].address), self.size), window

    @contextmanager
    def map_plain(self) -> Iterator[tuple[float, ctypes.c_void_p]]:
        """Map it where the kernel likes to."""
        address = ctypes.c_void_p()
        offset = ctypes.c_uint64(self._region.info.file_offset)
        cost = self._map_and_touch(self._region.vdev.fileno(), offset, self.size, ctypes.byref(address))
        self.lucky += (address.value or 0) % _HUGE == 0
        yield cost, address
        self._unmap(address, self.size)

    def note(self) -> str:
        """Say whether the peer was lucky."""
        return f"the kernel aligned {self.lucky} of the plain ones by itself" if self.lucky else ""


@contextmanager
def _bar() -> Iterator[_Bar]:
    with vfio_user.open(testing.device("ivshmem").address) as pci:
        yield _Bar(pci.bar(_BAR))


@contextmanager
def _map_and_touch() -> Iterator[Pair]:
    with _bar() as bar:

        def ours() -> float:
            cost, window = bar.map_window()
            window.close()
            return cost

        def peer() -> float:
            with bar.map_plain() as (cost, _):
                return cost

        yield Pair(ours, peer, bar.note)


@contextmanager
def _zap() -> Iterator[Pair]:
    replace: Callable[..., float] = build.cost("vfio", "replace_ns", _MS)
    with _bar() as bar:

        def ours() -> float:
            _, window = bar.map_window()
            start = time.perf_counter_ns()
            window.zap()
            cost = (time.perf_counter_ns() - start) / _MS
            window.close()
            return cost

        def peer() -> float:
            with bar.map_plain() as (_, address):
                return replace(address, bar.size)

        yield Pair(ours, peer, bar.note)


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    for name, what, peer, setup in (
        ("bar-map-touch", "map and touch a BAR of 256 MiB", "plain mmap() and touch", _map_and_touch),
        ("bar-zap", "zap of a BAR of 256 MiB, touched", "mmap(MAP_FIXED) of the plain one", _zap),
    ):
        yield Benchmark(name=name, what=what, unit="ms", peer=peer, goal=0.1, setup=setup)
