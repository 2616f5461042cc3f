"""The uAPI's requests as objects: a name for messages, and a number for the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from vfio_user._uapi import lib
from vfio_user.errors import ArgumentError

__all__ = ["Request", "requests"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request of ``ioctl()``.

    Lifetime:
        A value.
    Locking:
        None; immutable.
    """

    name: str
    """Name in the uAPI, as messages show it."""
    number: int
    """Number that goes to the kernel."""

    @classmethod
    def private(cls, name: str, nr: int) -> Request:
        """Make a request that the uAPI lacks: a variant driver's own, of VFIO's type and without a size.

        Args:
            name: what messages call it.
            nr: number within the type, 0 to 255; VFIO's own begin at 100 (``VFIO_BASE``).

        Raises:
            ArgumentError: the number does not fit.
        """
        # Imported here: it brings ctypes in, which nothing else needs.
        from ioctl_opt import IO

        if not 0 <= nr <= 0xFF:
            raise ArgumentError(f"request {name}: number {nr} is not within 0..255")
        return cls(name, int(IO(lib.VFIO_TYPE, nr)))

    def __str__(self) -> str:
        return self.name


class _Requests:
    """All requests of the uAPI, one attribute each; the numbers come from its declarations.

    The same number means different things to different files: a device's ``VFIO_DEVICE_PCI_HOT_RESET`` is a
    container's ``VFIO_IOMMU_MAP_DMA``.
    """

    # Container
    VFIO_GET_API_VERSION: Request
    VFIO_CHECK_EXTENSION: Request
    VFIO_SET_IOMMU: Request

    # Group
    VFIO_GROUP_GET_STATUS: Request
    VFIO_GROUP_SET_CONTAINER: Request
    VFIO_GROUP_UNSET_CONTAINER: Request
    VFIO_GROUP_GET_DEVICE_FD: Request

    # Device
    VFIO_DEVICE_GET_INFO: Request
    VFIO_DEVICE_GET_REGION_INFO: Request
    VFIO_DEVICE_GET_IRQ_INFO: Request
    VFIO_DEVICE_SET_IRQS: Request
    VFIO_DEVICE_RESET: Request
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: Request
    VFIO_DEVICE_PCI_HOT_RESET: Request
    VFIO_DEVICE_QUERY_GFX_PLANE: Request
    VFIO_DEVICE_GET_GFX_DMABUF: Request
    VFIO_DEVICE_IOEVENTFD: Request
    VFIO_DEVICE_FEATURE: Request
    VFIO_DEVICE_BIND_IOMMUFD: Request
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: Request
    VFIO_DEVICE_DETACH_IOMMUFD_PT: Request

    # File of a migration's data
    VFIO_MIG_GET_PRECOPY_INFO: Request

    # Container with an IOMMU
    VFIO_IOMMU_GET_INFO: Request
    VFIO_IOMMU_MAP_DMA: Request
    VFIO_IOMMU_UNMAP_DMA: Request
    VFIO_IOMMU_ENABLE: Request
    VFIO_IOMMU_DISABLE: Request
    VFIO_IOMMU_DIRTY_PAGES: Request
    VFIO_EEH_PE_OP: Request
    VFIO_IOMMU_SPAPR_TCE_GET_INFO: Request
    VFIO_IOMMU_SPAPR_REGISTER_MEMORY: Request
    VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY: Request
    VFIO_IOMMU_SPAPR_TCE_CREATE: Request
    VFIO_IOMMU_SPAPR_TCE_REMOVE: Request

    # iommufd
    IOMMU_DESTROY: Request
    IOMMU_IOAS_ALLOC: Request
    IOMMU_IOAS_ALLOW_IOVAS: Request
    IOMMU_IOAS_COPY: Request
    IOMMU_IOAS_IOVA_RANGES: Request
    IOMMU_IOAS_MAP: Request
    IOMMU_IOAS_UNMAP: Request
    IOMMU_OPTION: Request
    IOMMU_VFIO_IOAS: Request
    IOMMU_HWPT_ALLOC: Request
    IOMMU_GET_HW_INFO: Request
    IOMMU_HWPT_SET_DIRTY_TRACKING: Request
    IOMMU_HWPT_GET_DIRTY_BITMAP: Request
    IOMMU_HWPT_INVALIDATE: Request
    IOMMU_FAULT_QUEUE_ALLOC: Request
    IOMMU_IOAS_MAP_FILE: Request
    IOMMU_VIOMMU_ALLOC: Request
    IOMMU_VDEVICE_ALLOC: Request
    IOMMU_IOAS_CHANGE_PROCESS: Request
    IOMMU_VEVENTQ_ALLOC: Request
    IOMMU_HW_QUEUE_ALLOC: Request
    IOMMU_IOAS_NOIOMMU_GET_PA: Request

    def __init__(self) -> None:
        for name in type(self).__annotations__:
            setattr(self, name, Request(name, getattr(lib, name)))


requests = _Requests()
