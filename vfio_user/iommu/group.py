"""IOMMU groups: ``/dev/vfio/<number>``."""

from __future__ import annotations

import errno
import weakref

from vfio_user._uapi import ffi, lib
from vfio_user.errors import NotViableError, UnsupportedError, VfioIoctlError
from vfio_user.iommu import explain
from vfio_user.iommu.token import vf_token as parse_token
from vfio_user.kernel import sysfs
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import ioctl, requests

__all__ = ["Group", "open_group"]

_open: weakref.WeakValueDictionary[int, Group] = weakref.WeakValueDictionary()


def open_group(number: int) -> Group | None:
    """Give the group of that number if this process has it open: having it open is what owning its devices means."""
    found = _open.get(number)
    return found if found is not None and not found.fd.closed else None


class Group:
    """An open IOMMU group, the unit of ownership: one process at a time has it.

    Lifetime:
        Closed by `close()`, after its devices and before its container. The kernel refuses a second open while it is
        open (EBUSY), so an address space keeps one object for all devices of the group.
    Locking:
        None of its own; an address space calls it under its attach lock.
    """

    def __init__(self, number: int, *, noiommu: bool = False, fd: OwnedFd | None = None) -> None:
        """Open the group's node.

        Args:
            number: the group's number in sysfs.
            noiommu: open ``noiommu-<number>`` instead.
            fd: the node, where it is open already: another process has opened it.

        Raises:
            VfioOSError: the node is missing (ENOENT), not ours (EACCES) or open already (EBUSY); the message says
                what to do.
        """
        self.number = number
        self.noiommu = noiommu
        path = f"/dev/vfio/{'noiommu-' if noiommu else ''}{number}"
        self.fd = fd or explain.open_node(path, lambda code: explain.group_open(code, number, path))
        _open[number] = self

    @property
    def status(self) -> int:
        """Flags of ``VFIO_GROUP_GET_STATUS``: viable, container set."""
        reply = ffi.new("struct vfio_group_status *", {"argsz": ffi.sizeof("struct vfio_group_status")})
        ioctl(self.fd.fileno(), requests.VFIO_GROUP_GET_STATUS, reply, device=self.fd.name)
        return int(reply.flags)

    @property
    def viable(self) -> bool:
        """Tell whether every device of the group is bound to VFIO, to a harmless driver, or to none."""
        return bool(self.status & lib.VFIO_GROUP_FLAGS_VIABLE)

    @property
    def in_container(self) -> bool:
        """Tell whether it is in a container; not when its last device was unplugged, and the group with it."""
        try:
            return bool(self.status & lib.VFIO_GROUP_FLAGS_CONTAINER_SET)
        except VfioIoctlError as error:
            if error.errno == errno.ENODEV:
                return False
            raise

    def require_viable(self) -> None:
        """Make sure that the group is viable.

        Raises:
            NotViableError: it is not; names the devices in the way, their drivers, and how to free them.
        """
        if self.viable:
            return
        culprits = [(str(each.address), each.driver or "") for each in sysfs.group(self.number).culprits]
        raise NotViableError(explain.not_viable(self.number, culprits), culprits)

    def set_container(self, container: OwnedFd) -> None:
        """Put the group into a container: ``VFIO_GROUP_SET_CONTAINER``.

        Raises:
            VfioIoctlError: EPERM for a noiommu group without CAP_SYS_RAWIO; EINVAL when it is in a container
                already, or the container can't take it.
        """
        argument = ffi.new("int32_t *", container.fileno())
        try:
            ioctl(self.fd.fileno(), requests.VFIO_GROUP_SET_CONTAINER, argument, device=self.fd.name)
        except VfioIoctlError as error:
            code = error.errno or 0
            raise VfioIoctlError(code, error.request, self.fd.name, explain.set_container(code)) from error

    def unset_container(self) -> None:
        """Take the group out of its container: ``VFIO_GROUP_UNSET_CONTAINER``.

        Raises:
            VfioIoctlError: EBUSY while a device of the group is open, also through a mapping of its memory. iommufd's
                stand-in for a container lets the group go nevertheless; EINVAL when it is in none.
        """
        ioctl(self.fd.fileno(), requests.VFIO_GROUP_UNSET_CONTAINER, device=self.fd.name)

    def open_device(self, name: str, *, vf_token: str | None = None) -> OwnedFd:
        """Open a device of the group: ``VFIO_GROUP_GET_DEVICE_FD``.

        Args:
            name: PCI address, or UUID of a mediated device.
            vf_token: UUID that the owner of the physical function has set; for virtual functions only.

        Raises:
            ArgumentError: the token is not a UUID.
            UnsupportedError: no such device in this group, or it is not bound to a VFIO driver (ENODEV).
            VfioIoctlError: EACCES for a missing or wrong VF token, EINVAL for one that the device has no use for; EBUSY
                when the device is open through its cdev.
        """
        text = name if vf_token is None else f"{name} vf_token={parse_token(vf_token)}"
        argument = ffi.new("char[]", text.encode())
        try:
            fd = ioctl(self.fd.fileno(), requests.VFIO_GROUP_GET_DEVICE_FD, argument, device=name)
        except VfioIoctlError as error:
            if error.errno == errno.ENODEV:
                raise UnsupportedError(explain.no_such_device(name, self.number)) from error
            code = error.errno or 0
            raise VfioIoctlError(code, error.request, name, explain.device_open(code, vf_token is not None)) from error
        return OwnedFd(fd, name)

    def close(self) -> None:
        """Close the group; closing twice does nothing."""
        self.fd.close()

    def __repr__(self) -> str:
        return f"<Group {self.number}{' noiommu' if self.noiommu else ''}{' closed' if self.fd.closed else ''}>"
