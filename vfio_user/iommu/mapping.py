"""One mapping of an address space."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user._mmio import Entry
from vfio_user.addresses import Iova, Vaddr

if TYPE_CHECKING:
    from vfio_user.iommu.mapper import Mapper

__all__ = ["DmaMapping"]


class DmaMapping(Entry):
    """Memory that devices reach at an IOVA.

    ``iova`` is where devices find it, ``size`` its bytes, a multiple of the IOMMU's page size. ``suspended`` tells
    whether it is taken from the devices for a while, and keeps its IOVA; see `vfio_user.iommu.suspend`.

    Lifetime:
        Ends with `unmap()`, with the ``with`` block, with `AddressSpace.unmap_all` or with the address space. Until
        the kernel has confirmed the unmap, the address space keeps the memory alive: a device could still write to it.
    Locking:
        `unmap()` may be called from any thread, and more than once.
    """

    __slots__ = ("__weakref__", "_again", "_mapper", "vaddr")

    def __init__(
        self, mapper: Mapper, iova: Iova, vaddr: Vaddr | None, size: int, again: Callable[[Iova], Iova]
    ) -> None:
        super().__init__(iova, size)
        self._mapper = mapper
        self._again = again  # maps the same memory with the same rights
        self.vaddr = vaddr
        """Where this process finds it; `None` for memory from several places (`AddressSpace.map_many`), and for a file
        that was mapped without an address."""

    @property
    def mapped(self) -> bool:
        """Tell whether devices reach it."""
        return not self.ended and not self.suspended

    @property
    def ended(self) -> bool:
        """Tell whether it was unmapped for good."""
        return not self._mapper.books.holds(self)

    def offset_of(self, vaddr: int, size: int) -> int | None:
        """Give where in the mapping memory of this process lies; `None` when devices don't reach all of it here."""
        if self.vaddr is None or not self.mapped:
            return None
        offset = vaddr - self.vaddr
        return offset if 0 <= offset <= self.size - size else None

    def unmap(self) -> None:
        """Take it from the devices; unmapping twice does nothing.

        Raises:
            VfioError: the kernel did not unmap all of it; the memory then stays alive.
        """
        self._mapper.unmap(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmap()

    def __repr__(self) -> str:
        state = " unmapped" if self.ended else " suspended" if self.suspended else ""
        return f"<DmaMapping {self.iova:#x}..{self.iova + self.size - 1:#x}{state}>"
