"""``/dev/iommu``: the file that address spaces, page tables and queues are made in."""

from __future__ import annotations

import errno
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user._uapi import lib
from vfio_user.iommu import explain
from vfio_user.iommu.iommufd.command import command
from vfio_user.iommu.iommufd.events import FaultQueue
from vfio_user.iommu.iommufd.hwinfo import HwInfo, read_hw_info
from vfio_user.iommu.iommufd.ioas import Ioas
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import HwInfoType

if TYPE_CHECKING:
    from vfio_user._uapi import CData

__all__ = ["NODE", "Iommufd"]

NODE = "/dev/iommu"


class Iommufd:
    """An open iommufd: objects are made in it, and devices are bound to it.

    Source: ``Documentation/userspace-api/iommufd.rst`` and ``drivers/iommu/iommufd/`` of Linux.

    Lifetime:
        `close()`, or the ``with`` block, ends every object in it that no device holds. Devices hold it open: they are
        closed first.
    Locking:
        Every method is one system call; the kernel serialises them.
    """

    def __init__(self, fd: OwnedFd | None = None) -> None:
        """Open ``/dev/iommu``, or take over one that is open, such as a container of a compat mode.

        Raises:
            VfioOSError: the node is missing (kernels before 6.2, or without ``CONFIG_IOMMUFD``) or not ours.
        """
        self.fd = fd or explain.open_node(NODE, explain.iommufd_open)
        """The file."""

    def fileno(self) -> int:
        """Give the descriptor's number.

        Raises:
            ClosedError: it was closed.
        """
        return self.fd.fileno()

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self.fd.closed

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self.fd.close()

    # -- objects

    def alloc_ioas(self) -> Ioas:
        """Make an address space: ``IOMMU_IOAS_ALLOC``."""
        reply = command(self.fd, requests.IOMMU_IOAS_ALLOC, "struct iommu_ioas_alloc")
        return Ioas(self, reply.out_ioas_id)

    def alloc_fault_queue(self) -> FaultQueue:
        """Make a queue of I/O page faults, for page tables that ask for one: ``IOMMU_FAULT_QUEUE_ALLOC``.

        Raises:
            UnsupportedError: the kernel has none (before 6.11).
        """
        reply = command(self.fd, requests.IOMMU_FAULT_QUEUE_ALLOC, "struct iommu_fault_alloc")
        return FaultQueue(self, reply.out_fault_id, OwnedFd(reply.out_fault_fd, "page faults"))

    def hw_info(self, device_id: int, kind: HwInfoType | None = None) -> HwInfo:
        """Ask what the IOMMU behind a device is: ``IOMMU_GET_HW_INFO``.

        Args:
            device_id: of a device that is bound to this iommufd.
            kind: a kind of information in particular, where an IOMMU has several; by default that of its driver.

        Raises:
            UnsupportedError: it has no information of that kind, or is a noiommu device.
            VfioIoctlError: ENOENT when there is no such device.
            MalformedReplyError: the answer is absurdly long, or grows without end.
        """
        return read_hw_info(self.fd, device_id, kind)

    # -- all of it

    @property
    def accounts_by_process(self) -> bool:
        """Whether pinned memory counts against the process's limit, as VFIO containers do it, or the user's.

        ``IOMMU_OPTION_RLIMIT_MODE``; setting it needs CAP_SYS_RESOURCE and an iommufd without objects.

        Raises:
            VfioIoctlError: EBUSY when there are objects already; EPERM.
        """
        return bool(self._option(lib.IOMMU_OPTION_RLIMIT_MODE, lib.IOMMU_OPTION_OP_GET).val64)

    @accounts_by_process.setter
    def accounts_by_process(self, value: bool) -> None:
        self._option(lib.IOMMU_OPTION_RLIMIT_MODE, lib.IOMMU_OPTION_OP_SET, int(value))

    def change_process(self) -> None:
        """Charge all pinned memory to this process, which took the iommufd over: ``IOMMU_IOAS_CHANGE_PROCESS``.

        Every mapping must be one of a file (`Ioas.map_file`): memory of the other process is not this one's.

        Raises:
            UnsupportedError: the kernel can't (before 6.14).
            VfioIoctlError: EINVAL when a mapping is not one of a file; ENOMEM beyond this process's limit.
        """
        hints = {errno.EINVAL: "Only mappings of files can change hands: map memory files with map_file()"}
        command(self.fd, requests.IOMMU_IOAS_CHANGE_PROCESS, "struct iommu_ioas_change_process", hints=hints)

    # -- the compatibility container

    @property
    def vfio_ioas(self) -> Ioas | None:
        """The address space that requests of a VFIO container act on; `None` when there is none: ``IOMMU_VFIO_IOAS``.

        One is made when the first group is put into the container; it can be set to any other before, or taken away.
        The `Ioas` is not destroyed with this object.
        """
        try:
            return Ioas(self, self._vfio_ioas(lib.IOMMU_VFIO_IOAS_GET).ioas_id)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None

    @vfio_ioas.setter
    def vfio_ioas(self, ioas: Ioas | None) -> None:
        if ioas is None:
            self._vfio_ioas(lib.IOMMU_VFIO_IOAS_CLEAR)
        else:
            self._vfio_ioas(lib.IOMMU_VFIO_IOAS_SET, ioas.id)

    # -- inside

    def _option(self, option: int, operation: int, value: int = 0, number: int = 0) -> CData:
        return command(
            self.fd,
            requests.IOMMU_OPTION,
            "struct iommu_option",
            option_id=option,
            op=operation,
            val64=value,
            object_id=number,
        )

    def _vfio_ioas(self, operation: int, number: int = 0) -> CData:
        return command(self.fd, requests.IOMMU_VFIO_IOAS, "struct iommu_vfio_ioas", ioas_id=number, op=operation)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Iommufd{' closed' if self.closed else ''}>"
