"""Virtual IOMMUs: parts of an IOMMU's hardware that are handed to a guest.

QEMU's IOMMUs have none of it, and the kernel says EOPNOTSUPP for the type, or EINVAL for page tables that can't be
nested in: it is exercised on the kernel's mock IOMMU only. Source: ``drivers/iommu/iommufd/viommu.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi
from vfio_user.errors import ArgumentError
from vfio_user.iommu.iommufd.command import address, command
from vfio_user.iommu.iommufd.events import VeventQueue
from vfio_user.iommu.iommufd.hwpt import HwptData, InvalidateEntry, NestedHwpt, alloc_nested, invalidate
from vfio_user.iommu.iommufd.object import IommufdObject
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import VeventqType

if TYPE_CHECKING:
    from vfio_user.iommu.iommufd.fd import Iommufd
    from vfio_user.iommu.iommufd.hwpt import Hwpt

__all__ = ["HwQueue", "Vdevice", "Viommu"]

_RECORDS = {
    int(VeventqType.ARM_SMMUV3): ffi.sizeof("struct iommu_vevent_arm_smmuv3"),
    int(VeventqType.TEGRA241_CMDQV): ffi.sizeof("struct iommu_vevent_tegra241_cmdqv"),
}


class Vdevice(IommufdObject):
    """A device as a virtual IOMMU knows it: by the number that the guest uses.

    Lifetime:
        See `IommufdObject`.
    Locking:
        Each call is one request; the kernel orders them.
    """


class HwQueue(IommufdObject):
    """A queue of the hardware that a guest fills by itself.

    Lifetime:
        See `IommufdObject`.
    Locking:
        Each call is one request; the kernel orders them.
    """


class Viommu(IommufdObject):
    """A virtual IOMMU, on top of page tables that can be nested in.

    Lifetime:
        See `IommufdObject`.
    Locking:
        Each call is one request; the kernel orders them.
    """

    def __init__(self, iommufd: Iommufd, number: int, data: bytes) -> None:
        super().__init__(iommufd, number)
        self.data = data
        """What its driver told when it was made, such as ``struct iommu_viommu_tegra241_cmdqv``."""

    @classmethod
    def alloc(cls, parent: Hwpt, device_id: int, kind: int, data: bytes = b"") -> Viommu:
        """Make one: ``IOMMU_VIOMMU_ALLOC``.

        Args:
            parent: page tables made with `HwptAllocFlags.NEST_PARENT`.
            device_id: a device behind the IOMMU in question.
            kind: a `ViommuType`, or the private number of a driver.
            data: input for its driver; comes back as output, in the same length.

        Raises:
            UnsupportedError: the device's IOMMU has none of the kind.
        """
        buffer = ffi.new("uint8_t[]", bytes(data))
        reply = command(
            parent.iommufd.fd,
            requests.IOMMU_VIOMMU_ALLOC,
            "struct iommu_viommu_alloc",
            hints={errno.EOPNOTSUPP: f"the device's IOMMU has no virtual IOMMU of type {kind}"},
            type=kind,
            dev_id=device_id,
            hwpt_id=parent._live(),
            data_len=len(data),
            data_uptr=address(buffer) if data else 0,
        )
        return cls(parent.iommufd, int(reply.out_viommu_id), bytes(ffi.buffer(buffer, len(data))))

    def alloc_nested(self, device_id: int, data: HwptData, *, fault_id: int = 0) -> NestedHwpt:
        """Make page tables of the guest's for a device behind this IOMMU; see `Hwpt.alloc_nested`."""
        return alloc_nested(self.iommufd, device_id, self._live(), data, fault_id=fault_id)

    def alloc_vdevice(self, device_id: int, virtual_id: int) -> Vdevice:
        """Tell by which number the guest knows a device: ``IOMMU_VDEVICE_ALLOC``.

        Args:
            device_id: the device in the iommufd.
            virtual_id: the number, such as the stream id of an SMMUv3.

        Raises:
            VfioIoctlError: EEXIST when the number is taken, or the device has one.
        """
        reply = command(
            self.iommufd.fd,
            requests.IOMMU_VDEVICE_ALLOC,
            "struct iommu_vdevice_alloc",
            hints={errno.EEXIST: "The number is taken, or the device has one already"},
            viommu_id=self._live(),
            dev_id=device_id,
            virt_id=virtual_id,
        )
        return Vdevice(self.iommufd, int(reply.out_vdevice_id))

    def alloc_event_queue(self, kind: int, depth: int, *, record_size: int | None = None) -> VeventQueue:
        """Make a queue of events: ``IOMMU_VEVENTQ_ALLOC``.

        Args:
            kind: a `VeventqType`, or the private number of a driver; one queue of each.
            depth: number of events that it holds, 1 to 2^19; those beyond are lost.
            record_size: bytes of an event, for private types.

        Raises:
            ArgumentError: the type is private, and no ``record_size`` was given.
            UnsupportedError: the IOMMU has no events of the kind.
            VfioIoctlError: EEXIST when there is such a queue already; EINVAL for the depth.
        """
        size = _RECORDS.get(kind) if record_size is None else record_size
        if size is None:
            raise ArgumentError(f"type {kind} is not known here; say by record_size how many bytes an event has")
        reply = command(
            self.iommufd.fd,
            requests.IOMMU_VEVENTQ_ALLOC,
            "struct iommu_veventq_alloc",
            hints={errno.EOPNOTSUPP: f"the virtual IOMMU has no events of type {kind}"},
            viommu_id=self._live(),
            type=kind,
            veventq_depth=depth,
        )
        fd = OwnedFd(reply.out_veventq_fd, "events of a virtual IOMMU")
        return VeventQueue(self.iommufd, int(reply.out_veventq_id), fd, size)

    def alloc_hw_queue(self, kind: int, index: int, iova: int, size: int) -> HwQueue:
        """Hand a queue of the hardware to the guest: ``IOMMU_HW_QUEUE_ALLOC``.

        Args:
            kind: a `HwQueueType`, or the private number of a driver.
            index: its number.
            iova: where its memory is mapped in the parent address space; physically contiguous if the IOMMU wants so.
            size: bytes of it.

        Raises:
            UnsupportedError: the IOMMU has none.
            VfioIoctlError: EINVAL for index, IOVA or size; EIO for memory that is not contiguous.
        """
        reply = command(
            self.iommufd.fd,
            requests.IOMMU_HW_QUEUE_ALLOC,
            "struct iommu_hw_queue_alloc",
            hints={errno.EOPNOTSUPP: f"the virtual IOMMU has no hardware queues of type {kind}"},
            viommu_id=self._live(),
            type=kind,
            index=index,
            nesting_parent_iova=iova,
            length=size,
        )
        return HwQueue(self.iommufd, int(reply.out_hw_queue_id))

    def invalidate(self, entries: Sequence[InvalidateEntry]) -> None:
        """Make the IOMMU forget what it has cached for this guest: ``IOMMU_HWPT_INVALIDATE``.

        Raises:
            VfioIoctlError: an entry was refused; the message says how many were done before.
        """
        invalidate(self.iommufd, self._live(), entries)
