"""Memory from many places, to be mapped as one range of IOVAs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi, lib
from vfio_user.errors import AlignmentError, ArgumentError
from vfio_user.kernel.mman import address_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vfio_user._uapi import CData

__all__ = ["Scatter", "gather", "view_of"]


@dataclass(frozen=True, slots=True)
class Scatter:
    """Pieces of memory in the order in which devices see them; pieces that abut in this process are one.

    Lifetime:
        Plain numbers; who makes one keeps the memory alive.
    """

    vaddrs: array[int]
    """Where each piece begins."""
    sizes: array[int]
    """How long each is, in bytes."""
    total: int
    """Bytes of all."""
    step: int = 0
    """How long all of them are, if they are of one size; 0 if not."""

    @classmethod
    def of_equal(cls, vaddrs: Iterable[int], size: int) -> Scatter:
        """Put pieces of one size together.

        Raises:
            ArgumentError: there is none, or the size is not positive, or something is no address.
        """
        try:
            begins = array("Q", vaddrs)
        except (TypeError, OverflowError) as error:
            raise ArgumentError(f"not a list of addresses: {error}") from None
        if size <= 0:
            raise ArgumentError(f"size {size} is not positive")
        if not begins:
            raise ArgumentError("there is nothing to map: no addresses were given")
        # Thousands of pieces are usual here: what can be left to C is.
        if lib.vu_has_step(_numbers(begins), len(begins), size):
            return cls.of((begin, size) for begin in begins)
        return cls(begins, array("Q", (size,)) * len(begins), size * len(begins), size)

    @classmethod
    def of(cls, pieces: Iterable[tuple[int, int]]) -> Scatter:
        """Put pieces together, each an address and a size.

        Raises:
            ArgumentError: there is none.
        """
        vaddrs, sizes = array("Q"), array("Q")
        end = -1
        for vaddr, size in pieces:
            if vaddr == end:
                sizes[-1] += size
            else:
                vaddrs.append(vaddr)
                sizes.append(size)
            end = vaddr + size
        if not vaddrs:
            raise ArgumentError("there is nothing to map: no buffers were given")
        return cls(vaddrs, sizes, sum(sizes), sizes[0] if len(sizes) == 1 else 0)

    def require_aligned(self, page: int) -> None:
        """Refuse pieces that the IOMMU can't map.

        Raises:
            AlignmentError: a piece does not begin and end on a page of the IOMMU.
        """
        sizes = self.step or lib.vu_all_bits(_numbers(self.sizes), len(self))
        if (lib.vu_all_bits(_numbers(self.vaddrs), len(self)) | sizes) % page:
            for vaddr, size in zip(self.vaddrs, self.sizes, strict=True):
                if vaddr % page or size % page:
                    raise AlignmentError(
                        f"address {vaddr:#x} and size {size:#x} must be multiples of the IOMMU's page size {page:#x}; "
                        "alloc() gives such memory"
                    )

    def places(self, iova: int) -> range | array[int]:
        """Give the IOVA of each piece, when the first is at ``iova``."""
        if self.step:
            return range(iova, iova + self.total, self.step)
        return array("Q", accumulate(self.sizes[:-1], initial=iova))

    def __len__(self) -> int:
        return len(self.vaddrs)


def _numbers(values: array[int]) -> CData:
    return ffi.from_buffer("uint64_t[]", values)


def view_of(buffer: Buffer, *, write: bool) -> memoryview:
    """Give a view of memory of the caller's that is to be mapped.

    Raises:
        ArgumentError: it has no buffer, or one that is not contiguous, not writable where it must be, or empty.
    """
    try:
        view = memoryview(buffer)
    except TypeError:
        raise ArgumentError(
            f"{type(buffer).__name__} has no buffer to map; pass mmap, numpy array, ... or use alloc()"
        ) from None
    if not view.c_contiguous:
        raise ArgumentError("the buffer is not contiguous, or not in C's order of dimensions")
    if write and view.readonly:
        raise ArgumentError("the buffer is read-only; pass write=False, or a writable one")
    if view.nbytes == 0:
        raise ArgumentError("the buffer is empty")
    return view


def gather(views: Iterable[memoryview]) -> Scatter:
    """Put the memory of views together."""
    return Scatter.of((address_of(view), view.nbytes) for view in views)
