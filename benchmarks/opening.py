"""Benchmarks of opening devices on the real /dev/vfio: one, and many at the same time."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager

import vfio_user
from benchmarks import build
from benchmarks.model import Benchmark, Pair
from vfio_user import testing

__all__ = ["benchmarks"]

_MS = 1e6
_MODE = "type1v2"
_VERSION = 8  # offset of register VS


def _open(address: str) -> float:
    start = time.perf_counter_ns()
    with vfio_user.open(address, mode=_MODE) as pci:
        assert pci.bar(0).read32(_VERSION) != 0xFFFF_FFFF
        return (time.perf_counter_ns() - start) / _MS


@contextmanager
def _one() -> Iterator[Pair]:
    address = testing.device("nvme").address
    function = vfio_user.pci_function(address)
    bare = build.cost("opening", "open_ns", _MS)
    value = ctypes.c_uint32()

    def peer() -> float:
        cost = bare(address.encode(), function.iommu_group, ctypes.byref(value))
        assert value.value != 0xFFFF_FFFF
        return cost

    yield Pair(lambda: _open(address), peer)


@contextmanager
def _many() -> Iterator[Pair]:
    addresses = [device.address for device in testing.devices("nvme")]
    assert len(addresses) == 16

    def together() -> float:
        start = time.perf_counter_ns()
        with vfio_user.open_all(addresses, mode=_MODE) as devices:
            cost = (time.perf_counter_ns() - start) / _MS
            assert all(pci.bar(0).read32(_VERSION) != 0xFFFF_FFFF for pci in devices)
            return cost

    yield Pair(together, lambda: max(_open(address) for address in addresses))


def benchmarks() -> Iterator[Benchmark]:
    """Give the benchmarks of this module."""
    yield Benchmark(
        name="open-nvme",
        what="open NVMe until a register is read",
        unit="ms",
        peer="the same requests in C",
        goal=1.1,
        setup=_one,
    )
    yield Benchmark(
        name="open-all-16",
        what="open 16 NVMe at the same time",
        unit="ms",
        peer="the slowest of them, alone",
        goal=2.0,
        setup=_many,
        rounds=3,
    )
