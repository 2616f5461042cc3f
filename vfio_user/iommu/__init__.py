"""The IOMMU side: containers and groups, address spaces, IOVAs and DMA memory.

One vocabulary over all back ends: an `AddressSpace` maps memory so that devices reach it at an IOVA. The back ends are
rows of a table (`vfio_user.iommu.modes`), and nothing above this package tells them apart.

Locking:
    The address-space lock is the last of the order ``dev_set lock, memory locks, address-space lock``. It guards the
    book-keeping only: no system call that maps or unmaps is made under it.
"""

from __future__ import annotations

from vfio_user.iommu.address_space import AddressSpace
from vfio_user.iommu.batch import UnmapBatch
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.iommu.buffer import DmaBuffer, DmaSlice
from vfio_user.iommu.deferred import DeferredUnmap
from vfio_user.iommu.dirty import DirtyTracking
from vfio_user.iommu.mapping import DmaMapping
from vfio_user.iommu.modes import IommuMode
from vfio_user.iommu.pool import DmaPool

__all__ = [
    "AddressSpace",
    "DeferredUnmap",
    "DirtyBitmap",
    "DirtyTracking",
    "DmaBuffer",
    "DmaMapping",
    "DmaPool",
    "DmaSlice",
    "IommuMode",
    "UnmapBatch",
]
