"""Benchmarks of resets on the real /dev/vfio: what the transaction adds to the kernel's part."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import vfio_user
from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user import PciDevice, testing
from vfio_user.iommu.group import open_group

__all__ = ["benchmarks"]

_MS = 1e6


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / _MS


@contextmanager
def _function_reset() -> Iterator[Pair]:
    bare = build.cost("vfio", "reset_ns", _MS)
    with vfio_user.open(testing.device("nvme").address) as pci:
        fd = pci.vdev.fileno()
        yield Pair(lambda: _timed(pci.reset), lambda: bare(fd))


def _group_fds(pci: PciDevice) -> list[int]:
    """What proves to the kernel that all of the slot is ours: nothing where devices were opened through iommufd."""
    groups = [open_group(number) for number in pci.device_set.plan().groups]
    return [group.fd.fileno() for group in groups if group is not None]


@contextmanager
def _hot_reset() -> Iterator[Pair]:
    bare = build.cost("vfio", "hot_reset_ns", _MS)
    with vfio_user.open(testing.device("edu").address) as pci:
        fd, fds = pci.vdev.fileno(), _group_fds(pci)
        array = (ctypes.c_int32 * len(fds))(*fds)
        yield Pair(lambda: _timed(pci.device_set.hot_reset), lambda: bare(fd, array, ctypes.c_uint32(len(fds))))


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    yield Benchmark(
        name="reset-nvme",
        what="function reset of NVMe, all of it",
        unit="ms",
        peer="the bare ioctl()",
        goal=1.02,
        setup=_function_reset,
    )
    yield Benchmark(
        name="hot-reset-edu",
        what="hot reset of edu, all of it",
        unit="ms",
        peer="the bare ioctl()",
        goal=1.05,
        setup=_hot_reset,
        rounds=31,
    )
