"""Memory as the controller sees it: that of callers, and that of queues."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from vfio_user.drivers.nvme.commands import CQE_SIZE, SQE_SIZE
from vfio_user.drivers.nvme.prp import list_stride, prp_pages
from vfio_user.errors import ArgumentError, BoundsError, IovaError
from vfio_user.iommu.buffer import DmaSlice
from vfio_user.kernel.mman import address_of, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    import numpy
    from typing_extensions import Buffer

    from vfio_user.iommu.address_space import AddressSpace
    from vfio_user.iommu.buffer import DmaBuffer
    from vfio_user.iommu.mapping import DmaMapping

    # numpy's arrays have a buffer, but say so to type checkers from Python 3.12 on only.
    Data: TypeAlias = Buffer | numpy.ndarray[Any, Any]

__all__ = ["Doorbells", "MemoryFinder", "QueueMemory", "SharedMemory", "view_of"]


class Doorbells(Protocol):
    """What a queue needs of BAR 0."""

    def write32(self, offset: int, value: int, /) -> None:
        """Write a doorbell; everything written to memory before is visible to the controller first."""


class SharedMemory(Protocol):
    """Memory that CPU and controller share: what a queue needs of a `vfio_user.iommu.DmaSlice`."""

    @property
    def view(self) -> memoryview:
        """The bytes."""

    @property
    def iova(self) -> int:
        """Where the controller finds them."""


@dataclass(frozen=True, slots=True)
class QueueMemory:
    """The memory of a queue pair."""

    submissions: SharedMemory
    """64 bytes for each entry, page aligned."""
    completions: SharedMemory
    """16 bytes for each entry, page aligned."""
    prp_lists: SharedMemory
    """``prp_stride`` bytes for each command in flight, page aligned."""
    prp_stride: int
    """Bytes of PRP list for each command."""

    @staticmethod
    def size(entries: int, max_transfer: int, page_size: int) -> int:
        """Tell how many bytes a queue pair of ``entries`` needs, page aligned."""
        return QueueMemory._places(entries, max_transfer, page_size)[-1]

    @classmethod
    def carve(cls, buffer: DmaBuffer, entries: int, max_transfer: int, page_size: int) -> QueueMemory:
        """Lay a queue pair over a buffer of at least `size` bytes."""
        places = cls._places(entries, max_transfer, page_size)
        submissions, completions, lists = (buffer[start:end] for start, end in itertools.pairwise(places))
        return cls(submissions, completions, lists, list_stride(max_transfer, page_size))

    @staticmethod
    def _places(entries: int, max_transfer: int, page_size: int) -> list[int]:
        lists = (entries - 1) * list_stride(max_transfer, page_size)
        sizes = (entries * SQE_SIZE, entries * CQE_SIZE, lists)
        return [0, *itertools.accumulate(round_up(size, page_size) for size in sizes)]


class MemoryFinder:
    """Tell the IOVA of any memory that is mapped: DMA buffers, slices of them, numpy arrays over them.

    Lifetime:
        As long as its address space.
    Locking:
        Any thread may call it.
    """

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        """Where it looks."""
        # Drivers use few buffers many times, so the last one found is the best guess.
        self._recent: DmaMapping | None = None

    def find(self, buffer: Data, *, writable: bool) -> tuple[memoryview, int]:
        """Return a view of the buffer, which keeps it alive, and the IOVA of its first byte.

        Args:
            buffer: contiguous memory inside of one mapping of the address space.
            writable: the device is going to write to it.

        Raises:
            ArgumentError: no buffer, not contiguous, or read-only where the device would write.
            IovaError: the memory is not mapped for the device, or not any more.
        """
        view = view_of(buffer)
        if writable and view.readonly:
            raise ArgumentError("the device can't write to a read-only buffer")
        vaddr = address_of(view)
        mapping = self._recent
        offset = None if mapping is None else mapping.offset_of(vaddr, view.nbytes)
        if mapping is None or offset is None:
            mapping, offset = self._search(vaddr, view.nbytes)
        return view, mapping.iova + offset

    def pages(
        self,
        data: Data | Sequence[Data] | None,
        page_size: int,
        max_transfer: int,
        *,
        writable: bool,
    ) -> tuple[object, list[int]]:
        """Name the pages of a command's data (`prp_pages`), and give what to hold so that they stay.

        Args:
            data: one piece of memory, several, or none.
            page_size: CC.MPS in bytes.
            max_transfer: most bytes that are allowed.
            writable: the device is going to write to it.

        Raises:
            BoundsError: more data than ``max_transfer``.
            AlignmentError: a piece does not start or end where PRPs need it.
            ArgumentError: a piece is no memory that the device could use.
            IovaError: a piece is not mapped for the device.
        """
        if data is None:
            return None, []
        pieces: Sequence[Data] = data if isinstance(data, (list, tuple)) else [cast("Data", data)]
        found = [self.find(piece, writable=writable) for piece in pieces]
        total = sum(view.nbytes for view, _ in found)
        if total > max_transfer:
            raise BoundsError(
                f"{total} bytes in one command: {max_transfer} at most; split it, as Namespace.read_into() does"
            )
        return found, prp_pages([(iova, view.nbytes) for view, iova in found], page_size)

    def _search(self, vaddr: int, size: int) -> tuple[DmaMapping, int]:
        for mapping in self.space.mappings:
            offset = mapping.offset_of(vaddr, size)
            if offset is not None:
                self._recent = mapping
                return mapping, offset
        raise IovaError(
            f"the memory at {vaddr:#x}, {size} bytes, is not mapped for the device, or was closed; "
            "allocate it with pci.dma_alloc(), or map it with pci.address_space.map()"
        )


def view_of(buffer: Data) -> memoryview:
    """Give a view of contiguous memory.

    Raises:
        ArgumentError: it is no memory, or not contiguous.
    """
    try:
        view = buffer.view if isinstance(buffer, DmaSlice) else memoryview(cast("Buffer", buffer))
    except TypeError:
        raise ArgumentError(
            f"{type(buffer).__name__} is no memory; pass a DmaBuffer, a slice or numpy array of one, or bytes"
        ) from None
    if not view.c_contiguous:
        raise ArgumentError("the memory of a transfer must be contiguous; copy it, or transfer its parts")
    return view
