"""The bulk verbs of containers and iommufds: one call into C, and a failure is that of its own row only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from vfio_user._uapi import ffi, lib
from vfio_user.addresses import Iova
from vfio_user.errors import ClosedError, VfioError, VfioIoctlError
from vfio_user.iommu import bulk
from vfio_user.iommu.scatter import Scatter
from vfio_user.kernel import ioctl
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import requests

if TYPE_CHECKING:
    from vfio_user._uapi import CData

PAGE = 0x1000


class FakeKernel:
    """Answer requests for ranges of IOVAs: fail what is named, count the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.rows: list[tuple[int, ...]] = []
        self.failing: dict[int, int] = {}
        self.short: dict[int, int] = {}
        monkeypatch.setattr(ioctl, "system_call_many", self.many)

    def many(self, fd: int, number: int, rows: CData, stride: int, count: int, done: CData) -> int:
        self.calls += 1
        ctype, fields = {
            requests.VFIO_IOMMU_MAP_DMA.number: (
                "struct vfio_iommu_type1_dma_map",
                ("argsz", "flags", "vaddr", "iova", "size"),
            ),
            requests.VFIO_IOMMU_UNMAP_DMA.number: (
                "struct vfio_iommu_type1_dma_unmap",
                ("argsz", "flags", "iova", "size"),
            ),
            requests.IOMMU_IOAS_MAP.number: (
                "struct iommu_ioas_map",
                ("size", "flags", "ioas_id", "user_va", "iova", "length"),
            ),
            requests.IOMMU_IOAS_UNMAP.number: ("struct iommu_ioas_unmap", ("size", "ioas_id", "iova", "length")),
        }[number]
        assert stride == ffi.sizeof(ctype)
        table = ffi.cast(f"{ctype} *", rows)
        for row in range(count):
            iova = table[row].iova
            if iova in self.failing:
                done[0] = row
                return -self.failing[iova]
            self.rows.append(tuple(int(getattr(table[row], field)) for field in fields))
            if iova in self.short:
                setattr(table[row], fields[-1], self.short[iova])
        done[0] = count
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return FakeKernel(monkeypatch)


@pytest.fixture
def fd() -> Iterator[OwnedFd]:
    with OwnedFd(os.memfd_create("iommu"), "/dev/iommu") as fd:
        yield fd


def never(*args: int) -> None:
    raise AssertionError(args)


SCATTER = Scatter.of([(0x10000, PAGE), (0x20000, 2 * PAGE), (0x40000, PAGE)])


def test_container_maps_each_piece(kernel: FakeKernel, fd: OwnedFd) -> None:
    assert bulk.map_in_container(fd, Iova(0x8000), SCATTER, never, read=True, write=True) == (3, None)
    size = ffi.sizeof("struct vfio_iommu_type1_dma_map")
    both = lib.VFIO_DMA_MAP_FLAG_READ | lib.VFIO_DMA_MAP_FLAG_WRITE
    assert kernel.rows == [
        (size, both, 0x10000, 0x8000, PAGE),
        (size, both, 0x20000, 0x9000, 2 * PAGE),
        (size, both, 0x40000, 0xB000, PAGE),
    ]
    assert kernel.calls == 1


def test_ioas_maps_each_piece(kernel: FakeKernel, fd: OwnedFd) -> None:
    assert bulk.map_in_ioas(fd, 7, Iova(0x8000), SCATTER, never, read=True, write=False) == (3, None)
    size = ffi.sizeof("struct iommu_ioas_map")
    flags = lib.IOMMU_IOAS_MAP_READABLE | lib.IOMMU_IOAS_MAP_FIXED_IOVA
    assert kernel.rows == [
        (size, flags, 7, 0x10000, 0x8000, PAGE),
        (size, flags, 7, 0x20000, 0x9000, 2 * PAGE),
        (size, flags, 7, 0x40000, 0xB000, PAGE),
    ]


Map = Callable[[OwnedFd, Callable[[int, int, int], object]], bulk.Mapped]


@pytest.mark.parametrize(
    "map_it",
    [
        lambda fd, again: bulk.map_in_container(fd, Iova(0x8000), SCATTER, again, read=True, write=True),
        lambda fd, again: bulk.map_in_ioas(fd, 7, Iova(0x8000), SCATTER, again, read=True, write=True),
    ],
    ids=["container", "ioas"],
)
def test_a_piece_that_fails_is_asked_for_alone(kernel: FakeKernel, fd: OwnedFd, map_it: Map) -> None:
    kernel.failing = {0x9000: errno.ENOMEM}
    asked: list[tuple[int, ...]] = []
    refusal = VfioIoctlError(errno.ENOMEM, "MAP", hint="raise the limit")

    def refuse(*args: int) -> None:
        asked.append(args)
        raise refusal

    assert map_it(fd, refuse) == (1, refusal)
    assert asked == [(0x9000, 0x20000, 2 * PAGE)]
    assert len(kernel.rows) == 1

    asked.clear()
    assert map_it(fd, lambda *args: asked.append(args)) == (3, None), "what works the second time is no failure"
    assert len(asked) == 1
    assert [row[-2] for row in kernel.rows[1:]] == [0x8000, 0xB000]


RUNS = [(0x1000, PAGE), (0x4000, 3 * PAGE), (0x9000, PAGE), (0xC000, PAGE)]


@pytest.mark.parametrize(
    "unmap_it",
    [bulk.unmap_in_container, lambda fd, runs: bulk.unmap_in_ioas(fd, 7, runs)],
    ids=["container", "ioas"],
)
def test_all_runs_are_tried(
    kernel: FakeKernel, fd: OwnedFd, unmap_it: Callable[[OwnedFd, bulk.Runs], bulk.Results]
) -> None:
    assert unmap_it(fd, RUNS) == [PAGE, 3 * PAGE, PAGE, PAGE]
    assert kernel.calls == 1
    kernel.failing = {0x1000: errno.EINVAL, 0xC000: errno.ENOENT}
    kernel.short = {0x9000: 0}
    results = unmap_it(fd, RUNS)
    assert results[1:3] == [3 * PAGE, 0]
    assert [(each.errno, each.device) for each in results if isinstance(each, VfioIoctlError)] == [
        (errno.EINVAL, "/dev/iommu"),
        (errno.ENOENT, "/dev/iommu"),
    ]
    fd.close()
    with pytest.raises(ClosedError):
        unmap_it(fd, RUNS)


def test_one_by_one() -> None:
    def unmap(iova: int, size: int) -> int:
        if iova == 0x4000:
            raise VfioError("refused")
        return size

    results = bulk.one_by_one(unmap, RUNS)
    assert [each for each in results if isinstance(each, int)] == [PAGE] * 3
    assert isinstance(results[1], VfioError)

    def closed(iova: int, size: int) -> int:
        raise ClosedError("gone")

    with pytest.raises(ClosedError):
        bulk.one_by_one(closed, RUNS)
