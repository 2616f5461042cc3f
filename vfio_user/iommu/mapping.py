"""One mapping of an address space."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user.addresses import Iova, Vaddr

if TYPE_CHECKING:
    from vfio_user.iommu.address_space import AddressSpace

__all__ = ["DmaMapping"]


class DmaMapping:
    """Memory that devices reach at an IOVA.

    Lifetime:
        Ends with `unmap()`, with the ``with`` block, with `AddressSpace.unmap_all` or with the address space. Until
        the kernel has confirmed the unmap, the mapping keeps the memory alive: a device could still write to it.
    Locking:
        `unmap()` may be called from any thread, and more than once.
    """

    __slots__ = ("_again", "_keepalive", "_space", "iova", "size", "suspended", "vaddr")

    def __init__(
        self,
        space: AddressSpace,
        iova: Iova,
        vaddr: Vaddr | None,
        size: int,
        keepalive: object,
        again: Callable[[Iova], Iova],
    ) -> None:
        self._space: AddressSpace | None = space
        self._keepalive: object = keepalive
        self._again: Callable[[Iova], Iova] | None = again  # maps the same memory with the same rights
        self.iova = iova
        """Where devices find it."""
        self.vaddr = vaddr
        """Where this process finds it; `None` for a file that was mapped without an address."""
        self.size = size
        """Bytes, a multiple of the IOMMU's page size."""
        self.suspended = False
        """It is taken from the devices for a while, and keeps its IOVA; see `vfio_user.iommu.suspend`."""

    @property
    def mapped(self) -> bool:
        """Tell whether devices reach it."""
        return self._space is not None and not self.suspended

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
        space = self._space
        if space is not None:
            space._unmap(self)

    def _ended(self) -> None:
        self._space = None
        self._keepalive = None
        self._again = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmap()

    def __repr__(self) -> str:
        state = "" if self.mapped else " suspended" if self._space is not None else " unmapped"
        return f"<DmaMapping {self.iova:#x}..{self.iova + self.size - 1:#x}{state}>"
