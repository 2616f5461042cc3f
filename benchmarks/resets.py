"""Benchmarks of resets on the real /dev/vfio: what the transaction adds to the kernel's part."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import vfio_user
from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user import PciDevice, ResetReport, testing
from vfio_user.iommu.group import open_group

__all__ = ["benchmarks"]

_MS = 1e6


class _Transaction:
    """A reset by the framework; costs in ms."""

    def __init__(self, reset: Callable[[], ResetReport]) -> None:
        self._reset = reset
        self._own: list[float] = []

    def __call__(self) -> float:
        start = time.perf_counter_ns()
        report = self._reset()
        cost = (time.perf_counter_ns() - start) / _MS
        self._own.append(1e3 * (report.seconds - report.reset_seconds))
        return cost

    def note(self) -> str:
        """Say how much of it is not the kernel's reset: mostly Python, which an emulated processor runs slowly."""
        return f"{statistics.median(self._own):.2g} ms of it outside of the ioctl()"


@contextmanager
def _function_reset() -> Iterator[Pair]:
    bare = build.cost("vfio", "reset_ns", _MS)
    with vfio_user.open(testing.device("nvme").address) as pci:
        fd = pci.vdev.fileno()
        ours = _Transaction(pci.reset)
        yield Pair(ours, lambda: bare(fd), ours.note)


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
        ours = _Transaction(pci.device_set.hot_reset)
        yield Pair(ours, lambda: bare(fd, array, ctypes.c_uint32(len(fds))), ours.note)


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
