"""Peer to peer: a part of one device's memory, mapped so that other devices reach it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict

from vfio_user.addresses import Iova
from vfio_user.device.dma_buf import HeldFile, export
from vfio_user.errors import AlignmentError, BoundsError, ClosedError, VfioError
from vfio_user.iommu.buffer import DmaSlice
from vfio_user.iommu.suspend import resume
from vfio_user.kernel.mman import PAGE_SIZE, round_up

if TYPE_CHECKING:
    from vfio_user.device.region import Region
    from vfio_user.iommu import AddressSpace
    from vfio_user.iommu.mapping import DmaMapping

__all__ = ["PeerMapping", "map_region"]


class _Limits(TypedDict):
    iova: int | None
    iova_limit: int | None
    read: bool
    write: bool


class PeerMapping:
    """A part of a region that the devices of an address space reach at an IOVA.

    While the memory is taken away (reset, decoding off, low power) the mapping is too: a device that goes there meets
    an IOMMU fault. It comes back with the memory, at the same IOVA.

    Lifetime:
        Ends with `unmap()`, the ``with`` block, the device whose memory it is, or the address space.
    Locking:
        All methods may be called from any thread.
    """

    def __init__(self, region: Region, offset: int, mapping: DmaMapping) -> None:
        self.region = region
        """The region that it shows."""
        self.offset = offset
        """Where in the region it begins."""
        self.iova: Iova = mapping.iova
        """Where devices find it; stays the same over resets."""
        self.size = mapping.size
        """Bytes."""
        self.error: VfioError | None = None
        """Why it did not come back with the memory; `None` when it did, or was not away."""
        self._mapping = mapping

    @property
    def mapped(self) -> bool:
        """Tell whether devices reach it now."""
        return self._mapping.mapped

    @property
    def ended(self) -> bool:
        """Tell whether it is unmapped for good."""
        return self._mapping.ended

    def restore(self) -> None:
        """Map it again, if it did not come back by itself; does nothing when it is mapped.

        Raises:
            ZappedError: the memory is away.
            ClosedError: the mapping, its device or its address space has ended.
            VfioIoctlError: the kernel refused; it stays unmapped.
        """
        if self.ended:
            raise ClosedError(f"{self!r} has ended; map the region again")
        with self.region.access():
            self._resume()

    def unmap(self) -> None:
        """Take it from the devices for good; unmapping twice does nothing.

        Raises:
            VfioError: the kernel did not confirm it.
        """
        self._mapping.unmap()

    def part(self, offset: int = 0, size: int | None = None) -> DmaSlice:
        """Give a part of it with its raw view, for drivers that take DMA memory.

        Raises:
            BoundsError: it is outside of the mapping.
        """
        size = self.size - offset if size is None else size
        if offset < 0 or size <= 0 or offset + size > self.size:
            raise BoundsError(f"{size} bytes at {offset:#x} are outside of {self!r}")
        return DmaSlice(self.region.view(self.offset + offset, size), Iova(self.iova + offset))

    def _resume(self) -> None:
        """Come back with the memory; the caller keeps it from going away."""
        try:
            resume(self._mapping)
        except VfioError as error:
            self.error = error
            raise
        self.error = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmap()

    def __repr__(self) -> str:
        state = "" if self.mapped else " unmapped" if self.ended else " away"
        last = self.iova + self.size - 1
        return f"<PeerMapping {self.region.name}+{self.offset:#x} at {self.iova:#x}..{last:#x}{state}>"


def map_region(
    region: Region,
    space: AddressSpace,
    offset: int,
    size: int | None,
    *,
    iova: int | None,
    iova_limit: int | None,
    read: bool,
    write: bool,
) -> PeerMapping:
    """Map a part of a region into an address space; see `Region.map_for`."""
    size = region.size - offset if size is None else size
    if offset < 0 or size <= 0 or offset + size > region.size:
        raise BoundsError(f"{size} bytes at offset {offset:#x} are outside of {region.name}, {region.size:#x} bytes")
    if offset % PAGE_SIZE:
        raise AlignmentError(f"offset {offset:#x} is not a multiple of the page size {PAGE_SIZE:#x}")
    # In a read section, so that nobody takes the memory away between the mapping and the note of it.
    with region.access() as mmio:
        whole = round_up(size, PAGE_SIZE) if offset + size == region.size else size
        if not any(start <= offset and offset + size <= start + length for start, length in mmio.areas):
            raise BoundsError(f"{size} bytes at offset {offset:#x} of {region.name} are not all mapped: {mmio.areas}")
        limits: _Limits = {"iova": iova, "iova_limit": iova_limit, "read": read, "write": write}
        if space.backend.maps_files:
            # iommufd maps no device memory by its address, and revokes what it maps of a dma-buf.
            file = HeldFile(export(region, [(offset, whole)], write=write))
            mapping = space.map_file(file.fileno(), whole, keepalive=file, **limits)
        else:
            mapping = space.map_address(mmio.address + offset, whole, **limits)
        return region.vdev.memory.add_peer(PeerMapping(region, offset, mapping))
