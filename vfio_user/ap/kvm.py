"""A virtual machine of KVM's, for devices that the kernel opens only on behalf of one. Nothing runs in it.

Source: ``Documentation/virt/kvm/api.rst``, ``Documentation/virt/kvm/devices/vfio.rst``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from types import TracebackType
from typing import Self

from vfio_user.errors import UnsupportedError, VfioOSError
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import address_of

__all__ = ["KvmVm"]

_NODE = "/dev/kvm"
_CREATE_VM = 0xAE01
_CREATE_DEVICE = 0xC00CAEE0
_SET_DEVICE_ATTR = 0x4018AEE1
_TYPE_VFIO = 4
_FILE, _FILE_ADD, _FILE_DEL = 1, 1, 2
_CREATE = struct.Struct("=III")
_ATTRIBUTE = struct.Struct("=IIQQ")


class KvmVm:
    """An empty virtual machine, and KVM's list of the VFIO files that belong to it.

    Lifetime:
        `close()`, or the ``with`` block; after the devices that were opened with it.
    Locking:
        None; one thread.
    """

    def __init__(self) -> None:
        """Make one.

        Raises:
            UnsupportedError: this machine has no KVM: no hardware for it, or the module is not loaded.
            VfioOSError: it refused.
        """
        try:
            node = OwnedFd(os.open(_NODE, os.O_RDWR | os.O_CLOEXEC), _NODE)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                raise UnsupportedError(
                    f"{_NODE} is not there: this machine has no KVM (dmesg of an emulated one says: kvm-s390: SIE is "
                    "not available), or its module is not loaded"
                ) from error
            raise VfioOSError(error.errno or 0, f"open {_NODE}", "Its group is kvm, on most machines") from error
        try:
            self._vm = OwnedFd(_ask(node.fileno(), _CREATE_VM, 0, "KVM_CREATE_VM"), "KVM's machine")
        finally:
            node.close()
        try:
            request = bytearray(_CREATE.pack(_TYPE_VFIO, 0, 0))
            _ask(self._vm.fileno(), _CREATE_DEVICE, request, "KVM_CREATE_DEVICE")
            self._list = OwnedFd(_CREATE.unpack(request)[1], "KVM's list of VFIO files")
        except BaseException:
            self._vm.close()
            raise

    def add(self, fd: int) -> None:
        """Say that a VFIO group or device belongs to the machine: ``KVM_DEV_VFIO_FILE_ADD``.

        Raises:
            VfioOSError: KVM refused: EEXIST when it is known, EBADF when it is no VFIO file.
        """
        self._change(_FILE_ADD, fd)

    def remove(self, fd: int) -> None:
        """Say that it does not any more: ``KVM_DEV_VFIO_FILE_DEL``. Raises as `add` does."""
        self._change(_FILE_DEL, fd)

    def close(self) -> None:
        """End the machine; closing twice does nothing."""
        self._list.close()
        self._vm.close()

    def _change(self, what: int, fd: int) -> None:
        number = memoryview(bytearray(struct.pack("=i", fd)))
        request = bytearray(_ATTRIBUTE.pack(0, _FILE, what, address_of(number)))
        _ask(self._list.fileno(), _SET_DEVICE_ATTR, request, "KVM_SET_DEVICE_ATTR")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ask(fd: int, request: int, argument: bytearray | int, name: str) -> int:
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise VfioOSError(error.errno or 0, name) from error
