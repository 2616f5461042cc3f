"""Devices by their own node, ``/dev/vfio/devices/vfioN``: bound to an iommufd, attached to its page tables."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi, lib
from vfio_user.errors import NotViableError, UnsupportedError, VfioIoctlError
from vfio_user.iommu import explain
from vfio_user.iommu.iommufd.command import address
from vfio_user.iommu.iommufd.object import IommufdObject
from vfio_user.iommu.token import vf_token as parse_token
from vfio_user.kernel import sysfs
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import Request, ioctl, requests

if TYPE_CHECKING:
    from vfio_user._uapi import CData
    from vfio_user.iommu.iommufd.fd import Iommufd
    from vfio_user.kernel.sysfs import VfioNode

__all__ = ["BoundDevice", "bind"]


class BoundDevice(OwnedFd):
    """A device's own file, bound to an iommufd.

    Lifetime:
        Closing it detaches and unbinds the device; nothing else unbinds.
    Locking:
        Every method is one system call; the kernel serialises them.
    """

    __slots__ = ("device_id", "iommufd")

    def __init__(self, fd: int, name: str, iommufd: Iommufd, device_id: int) -> None:
        super().__init__(fd, name)
        self.iommufd = iommufd
        """What it is bound to."""
        self.device_id = device_id
        """Its number there, as other requests name it."""

    def attach_pt(self, target: IommufdObject, *, pasid: int | None = None) -> int:
        """Let the device reach memory through an address space or page tables: ``VFIO_DEVICE_ATTACH_IOMMUFD_PT``.

        A device that is attached already goes over at once, with no moment in which it reaches nothing or both.

        Args:
            target: an `Ioas`, `Hwpt` or `NestedHwpt` of the same iommufd.
            pasid: attach this PASID of the device only. Not exercised on a device: none is emulated that has PASIDs.

        Returns:
            Number of the page tables: those given, or those that the kernel chose or made for an address space.

        Raises:
            UnsupportedError: PASIDs are beyond the kernel (before 6.16) or the device.
            VfioIoctlError: EBUSY when another device of its group is attached to something else; EINVAL when the
                page tables are of another IOMMU, or can't take a PASID (`HwptAllocFlags.PASID`); EADDRINUSE when
                something is mapped where the device can't have it.
        """
        flags = 0 if pasid is None else lib.VFIO_DEVICE_ATTACH_PASID
        ctype = "struct vfio_device_attach_iommufd_pt"
        argument = _argument(ctype, flags=flags, pt_id=target._live(), pasid=pasid or 0)
        self._ask(requests.VFIO_DEVICE_ATTACH_IOMMUFD_PT, argument, pasid)
        return int(argument.pt_id)

    def detach_pt(self, *, pasid: int | None = None) -> None:
        """Let the device, or one PASID of it, reach nothing: ``VFIO_DEVICE_DETACH_IOMMUFD_PT``.

        Detaching twice does nothing.

        Raises:
            UnsupportedError: PASIDs are beyond the kernel or the device.
        """
        flags = 0 if pasid is None else lib.VFIO_DEVICE_DETACH_PASID
        argument = _argument("struct vfio_device_detach_iommufd_pt", flags=flags, pasid=pasid or 0)
        self._ask(requests.VFIO_DEVICE_DETACH_IOMMUFD_PT, argument, pasid)

    def _ask(self, request: Request, argument: CData, pasid: int | None) -> None:
        try:
            ioctl(self.fileno(), request, argument, device=self.name)
        except VfioIoctlError as error:
            code = error.errno or 0
            if code == errno.EOPNOTSUPP and pasid is not None:
                raise UnsupportedError(f"{self.name}: neither this kernel nor the device can do PASIDs") from error
            raise VfioIoctlError(code, error.request, self.name, explain.device_attach(code, pasid)) from error


def bind(node: VfioNode, iommufd: Iommufd, *, vf_token: str | None = None) -> BoundDevice:
    """Open a device's own node and bind it: ``VFIO_DEVICE_BIND_IOMMUFD``.

    Args:
        node: the device in sysfs.
        iommufd: what to bind it to.
        vf_token: UUID that the owner of the physical function has set; for virtual functions only.

    Raises:
        ArgumentError: the token is not a UUID.
        UnsupportedError: the kernel gives the device no node of its own, or takes no token there.
        NotViableError: another device of its group is bound to a driver of the kernel.
        VfioOSError: a system call failed; the message says what to do.
    """
    token = None if vf_token is None else ffi.new("uint8_t[16]", parse_token(vf_token).bytes)
    path = node.cdev
    if path is None:
        raise UnsupportedError(explain.no_cdev(node))
    fd = explain.open_node(path, lambda code: explain.cdev_open(code, path))
    try:
        node.introduce(fd.fileno())
        argument = _argument(
            "struct vfio_device_bind_iommufd",
            flags=lib.VFIO_DEVICE_BIND_FLAG_TOKEN if token else 0,
            iommufd=iommufd.fileno(),
            token_uuid_ptr=address(token) if token else 0,
        )
        ioctl(fd.fileno(), requests.VFIO_DEVICE_BIND_IOMMUFD, argument, device=node.name)
    except VfioIoctlError as error:
        fd.close()
        raise _explained(error, node, vf_token) from error
    except BaseException:
        fd.close()
        raise
    return BoundDevice(fd.detach(), node.name, iommufd, int(argument.out_devid))


def _argument(ctype: str, **fields: int) -> CData:
    return ffi.new(f"{ctype} *", {"argsz": ffi.sizeof(ctype), **fields})


def _explained(error: VfioIoctlError, node: VfioNode, vf_token: str | None) -> Exception:
    code = error.errno or 0
    number = node.iommu_group
    if code in (errno.EBUSY, errno.EPERM) and number is not None:
        culprits = [(str(each.address), each.driver or "") for each in sysfs.group(number).culprits]
        if culprits:
            return NotViableError(explain.not_viable(number, culprits), culprits)
    return VfioIoctlError(code, error.request, node.name, explain.device_bind(code, vf_token is not None))
