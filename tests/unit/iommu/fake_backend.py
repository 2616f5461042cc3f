"""An IOMMU back end in memory, whose every call can be made to fail."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from vfio_user.addresses import Iova, IovaRange
from vfio_user.errors import VfioError, VfioIoctlError
from vfio_user.iommu.bulk import Mapped, Results, Runs, one_by_one
from vfio_user.iommu.info import IommuInfo
from vfio_user.iommu.modes import IommuMode
from vfio_user.iommu.scatter import Scatter
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import VfioNode

PAGE = 0x1000
RANGES = (IovaRange(0, 0xFEDF_FFFF), IovaRange(0xFEF0_0000, (1 << 39) - 1))


class FakeBackend:
    """Keep the page tables as a dictionary.

    Whatever is put into `before` under the name of a method is called first, with its arguments.
    """

    def __init__(self) -> None:
        self.mode = IommuMode.TYPE1V2
        self.maps_files = False
        self.emptied = False
        self.files: list[tuple[int, int]] = []
        self.ranges: tuple[IovaRange, ...] = RANGES
        self.page_sizes = 0x4020_1000
        self.mapped: dict[int, tuple[int, int, bool, bool]] = {}
        self.before: dict[str, Callable[..., object]] = {}
        self.short = 0
        """Bytes that an unmap leaves out."""
        self.refused: set[int] = set()
        """IOVAs of mappings that an unmap fails for, and for all that it was to take with them."""
        self.stuck: set[int] = set()
        """IOVAs of mappings that an unmap leaves where they are, without a word."""
        self.calls: list[str] = []
        self.closed = False
        self.lock = threading.Lock()

    def _called(self, name: str, *args: object) -> None:
        assert not self.closed, f"{name} after the end"
        self.calls.append(name)
        if name in self.before:
            self.before[name](*args)

    def attach(self, node: VfioNode, *, vf_token: str | None = None) -> OwnedFd:
        self._called("attach", node)
        return OwnedFd(os.memfd_create("device"), node.name)

    def info(self) -> IommuInfo:
        self._called("info")
        return IommuInfo(self.page_sizes, self.ranges, 65535 - len(self.mapped))

    def map(self, iova: Iova | None, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> Iova:
        assert iova is not None
        self._called("map", iova, vaddr, size)
        with self.lock:
            for first, (_, length, _, _) in self.mapped.items():
                assert iova + size <= first or first + length <= iova, "the kernel would say EEXIST"
            self.mapped[iova] = (vaddr, size, read, write)
        return iova

    def map_file(
        self, iova: Iova | None, fd: int, offset: int, size: int, *, read: bool = True, write: bool = True
    ) -> Iova:
        self.files.append((fd, offset))
        return self.map(iova, 0, size, read=read, write=write)

    def unmap(self, iova: int, size: int) -> int:
        self._called("unmap", iova, size)
        if self.short:
            return size - self.short
        with self.lock:
            end = iova + size
            gone = [first for first in self.mapped if iova <= first < end]
            assert all(first + self.mapped[first][1] <= end for first in gone), "mappings are unmapped whole"
            if self.refused.intersection(gone):
                raise VfioIoctlError(errno.EINVAL, "VFIO_IOMMU_UNMAP_DMA")
            return sum(self.mapped.pop(first)[1] for first in gone if first not in self.stuck)

    def unmap_all(self) -> int:
        self._called("unmap_all")
        with self.lock:
            if self.refused:
                raise VfioIoctlError(errno.EINVAL, "VFIO_IOMMU_UNMAP_DMA")
            total = sum(size for _, size, _, _ in self.mapped.values()) - self.short
            if self.stuck:
                return sum(self.mapped.pop(first)[1] for first in list(self.mapped) if first not in self.stuck)
            if not self.short:
                self.mapped.clear()
        return total

    def map_pieces(self, iova: Iova, scatter: Scatter, *, read: bool = True, write: bool = True) -> Mapped:
        place = iova
        for number, (vaddr, size) in enumerate(zip(scatter.vaddrs, scatter.sizes, strict=True)):
            try:
                self.map(place, vaddr, size, read=read, write=write)
            except VfioError as error:
                return number, error
            place = Iova(place + size)
        return len(scatter), None

    def unmap_runs(self, runs: Runs) -> Results:
        return one_by_one(self.unmap, runs)

    def close(self) -> None:
        self._called("close")
        self.mapped.clear()
        self.closed = True
