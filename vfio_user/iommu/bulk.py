"""The bulk verbs of back ends: thousands of requests by one call into C.

A container and an iommufd take the same numbers in different structures; what is done with the answers is the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from vfio_user._uapi import ffi, lib
from vfio_user.errors import ClosedError, VfioError, VfioIoctlError
from vfio_user.iommu.scatter import Scatter
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import Request, ioctl_many, requests
from vfio_user.kernel.table import Table

if TYPE_CHECKING:
    from vfio_user.addresses import Iova

__all__ = [
    "Mapped",
    "Results",
    "Runs",
    "Unmap",
    "map_in_container",
    "map_in_ioas",
    "one_by_one",
    "unmap_in_container",
    "unmap_in_ioas",
]

Mapped: TypeAlias = tuple[int, VfioError | None]
"""How many pieces were mapped, from the front, and why not the next; `None` when all were."""
Runs: TypeAlias = Sequence[tuple[int, int]]
"""Ranges to unmap: first IOVA and number of bytes of each."""
Results: TypeAlias = list[int | VfioError]
"""For each range the number of bytes that were unmapped, or why none were."""
Unmap: TypeAlias = Callable[[int, int], int]
"""Unmap one range, and give the number of bytes."""


def map_in_container(
    fd: OwnedFd, iova: Iova, scatter: Scatter, again: Callable[[int, int, int], object], *, read: bool, write: bool
) -> Mapped:
    """Map pieces of memory at one IOVA after the other: ``VFIO_IOMMU_MAP_DMA`` for each.

    Args:
        fd: the container.
        iova: of the first piece.
        scatter: the pieces.
        again: maps a single piece (IOVA, address, size), and raises what its user is to be told.
        read: devices may read.
        write: devices may write.
    """
    ctype = "struct vfio_iommu_type1_dma_map"
    flags = (lib.VFIO_DMA_MAP_FLAG_READ if read else 0) | (lib.VFIO_DMA_MAP_FLAG_WRITE if write else 0)
    table = Table(
        ctype,
        len(scatter),
        argsz=ffi.sizeof(ctype),
        flags=flags,
        vaddr=scatter.vaddrs,
        iova=scatter.places(iova),
        size=scatter.sizes,
    )
    return _map(fd, requests.VFIO_IOMMU_MAP_DMA, table, lambda row: again(row.iova, row.vaddr, row.size))


def map_in_ioas(
    fd: OwnedFd,
    ioas_id: int,
    iova: Iova,
    scatter: Scatter,
    again: Callable[[int, int, int], object],
    *,
    read: bool,
    write: bool,
) -> Mapped:
    """Map pieces likewise: ``IOMMU_IOAS_MAP`` for each."""
    ctype = "struct iommu_ioas_map"
    flags = (lib.IOMMU_IOAS_MAP_READABLE if read else 0) | (lib.IOMMU_IOAS_MAP_WRITEABLE if write else 0)
    table = Table(
        ctype,
        len(scatter),
        size=ffi.sizeof(ctype),
        flags=flags | lib.IOMMU_IOAS_MAP_FIXED_IOVA,
        ioas_id=ioas_id,
        user_va=scatter.vaddrs,
        iova=scatter.places(iova),
        length=scatter.sizes,
    )
    return _map(fd, requests.IOMMU_IOAS_MAP, table, lambda row: again(row.iova, row.user_va, row.length))


def unmap_in_container(fd: OwnedFd, runs: Runs) -> Results:
    """Unmap ranges: ``VFIO_IOMMU_UNMAP_DMA`` for each."""
    ctype = "struct vfio_iommu_type1_dma_unmap"
    iovas, sizes = _columns(runs)
    table = Table(ctype, len(runs), argsz=ffi.sizeof(ctype), iova=iovas, size=sizes)
    return _unmap(fd, requests.VFIO_IOMMU_UNMAP_DMA, table, "size")


def unmap_in_ioas(fd: OwnedFd, ioas_id: int, runs: Runs) -> Results:
    """Unmap ranges: ``IOMMU_IOAS_UNMAP`` for each; ENOENT where nothing is mapped."""
    ctype = "struct iommu_ioas_unmap"
    iovas, sizes = _columns(runs)
    table = Table(ctype, len(runs), size=ffi.sizeof(ctype), ioas_id=ioas_id, iova=iovas, length=sizes)
    return _unmap(fd, requests.IOMMU_IOAS_UNMAP, table, "length")


def one_by_one(unmap: Unmap, runs: Runs) -> Results:
    """Unmap ranges by a call of a back end's other verb for each."""
    results: Results = []
    for iova, size in runs:
        try:
            results.append(unmap(iova, size))
        except ClosedError:
            raise
        except VfioError as error:
            results.append(error)
    return results


def _columns(runs: Runs) -> tuple[array[int], array[int]]:
    return array("Q", [iova for iova, _ in runs]), array("Q", [size for _, size in runs])


def _map(fd: OwnedFd, request: Request, table: Table, again: Callable[..., object]) -> Mapped:
    at = 0
    while at < len(table):
        done, code = ioctl_many(fd.fileno(), request, table.rows_from(at))
        at += done
        if code:
            try:
                again(table.rows[at])
            except VfioError as error:
                return at, error
            at += 1
    return at, None


def _unmap(fd: OwnedFd, request: Request, table: Table, size: str) -> Results:
    failed: dict[int, VfioError] = {}
    at = 0
    while at < len(table):
        done, code = ioctl_many(fd.fileno(), request, table.rows_from(at))
        at += done
        if code:
            failed[at] = VfioIoctlError(code, request.name, fd.name)
            at += 1
    results: Results = [*table.column(size)]
    for row, error in failed.items():
        results[row] = error
    return results
