"""Take mappings from the devices for a while, and give them back at the same IOVAs.

For mappings of device memory: the IOMMU's back ends are not told when a reset takes that memory away, so whoever
resets the device takes its mappings away first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vfio_user.errors import VfioError
from vfio_user.iommu.mapping import DmaMapping

if TYPE_CHECKING:
    from vfio_user.iommu.address_space import AddressSpace

__all__ = ["resume", "suspend"]


def suspend(mappings: Iterable[DmaMapping]) -> None:
    """Take mappings from the devices in one batch for each address space; their IOVAs stay reserved.

    Mappings that abut are unmapped by one request. Those that are unmapped or suspended already are left out.

    Raises:
        VfioError: the kernel unmapped less than was asked for. Those before in the order of their IOVAs are suspended.
    """
    by_space: dict[AddressSpace, list[DmaMapping]] = {}
    for mapping in mappings:
        if mapping._space is not None:
            by_space.setdefault(mapping._space, []).append(mapping)
    for space, chosen in by_space.items():
        # Alone, so that nobody unmaps one of them meanwhile by itself and the books stay those of the kernel.
        with space._gate.alone():
            for run in _runs(each for each in chosen if each.mapped):
                size = sum(each.size for each in run)
                unmapped = space._backend.unmap(run[0].iova, size)
                if unmapped != size:
                    raise VfioError(f"the kernel unmapped {unmapped:#x} bytes of {size:#x} at IOVA {run[0].iova:#x}")
                for each in run:
                    each.suspended = True


def resume(mapping: DmaMapping) -> None:
    """Map a suspended mapping again, at the same IOVA; one that was unmapped meanwhile stays so.

    Raises:
        VfioIoctlError: the kernel refused (EFAULT: the memory behind it is not there); it stays suspended.
    """
    space = mapping._space
    if space is None:
        return
    with space._gate.alone():
        again = mapping._again
        if again is None or not mapping.suspended:
            return
        again(mapping.iova)
        mapping.suspended = False


def _runs(mappings: Iterable[DmaMapping]) -> Iterator[list[DmaMapping]]:
    """Give mappings in groups that abut, by IOVA."""
    run: list[DmaMapping] = []
    for mapping in sorted(mappings, key=lambda each: each.iova):
        if run and run[-1].iova + run[-1].size != mapping.iova:
            yield run
            run = []
        run.append(mapping)
    if run:
        yield run
