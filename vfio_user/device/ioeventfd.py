"""Registers that the kernel writes when an eventfd is signalled: ``VFIO_DEVICE_IOEVENTFD``.

Whoever has the eventfd can ring one doorbell with one value, and nothing else of the device: another process, a thread
that must not fault, an emulator's accelerator. Source: ``vfio_pci_ioeventfd()`` of
``drivers/vfio/pci/vfio_pci_rdwr.c``.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user._uapi import ffi
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, BusyError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import ioctl, requests

if TYPE_CHECKING:
    from vfio_user.device.region import Region

__all__ = ["IoEventFd"]

_WIDTHS = (1, 2, 4, 8)  # the flags are the widths
_HINTS = {
    errno.EINVAL: "Only memory and ports of BARs can be written so, and not the MSI-X table",
    errno.ENOSPC: "A device has room for 1000 of them",
}


class IoEventFd:
    """An eventfd that writes one value to one register; `Region.ioeventfd` makes one.

    While the memory is away (reset, decoding off, low power) a signal does nothing. It works again afterwards.

    Lifetime:
        `close()`, the ``with`` block, or the end of its device.
    Locking:
        Any thread and process may signal.
    """

    def __init__(self, region: Region, offset: int, value: int, width: int) -> None:
        self.region = region
        """The region of the register."""
        self.offset = offset
        """Where the register is in its region."""
        self.value = value
        """What is written."""
        self.width = width
        """Bytes of it: 1, 2, 4 or 8."""
        _check(region, offset, value, width)
        self._fd = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), f"doorbell of {region.name}+{offset:#x}")
        try:
            self._ask(self._fd.fileno())
        except BaseException:
            self._fd.close()
            raise

    def fileno(self) -> int:
        """Give the eventfd: writing to it, here or in another process, makes the kernel write the register.

        Raises:
            ClosedError: it was closed.
        """
        return self._fd.fileno()

    def signal(self) -> None:
        """Make the kernel write the register, soon."""
        os.eventfd_write(self.fileno(), 1)

    def close(self) -> None:
        """Let signals do nothing any more, and close the eventfd; closing twice does nothing.

        Raises:
            VfioIoctlError: the kernel refused; the eventfd is closed nevertheless.
        """
        if self._fd.closed:
            return
        try:
            if not self.region.vdev.closed:
                self._ask(-1)
        finally:
            self._fd.close()

    def _ask(self, fd: int) -> None:
        ctype, vdev = "struct vfio_device_ioeventfd", self.region.vdev
        argument = ffi.new(
            f"{ctype} *",
            {
                "argsz": ffi.sizeof(ctype),
                "flags": self.width,
                "offset": self.region.info.file_offset + self.offset,
                "data": self.value,
                "fd": fd,
            },
        )
        try:
            with vdev.user() as device:
                ioctl(device, requests.VFIO_DEVICE_IOEVENTFD, argument, device=vdev.name)
        except VfioIoctlError as error:
            code = error.errno or 0
            if code == errno.ENOTTY:
                raise UnsupportedError(f"{vdev.name}: its driver has no eventfds that write registers") from error
            if code == errno.EEXIST:
                what = f"{self.value:#x} at {self.offset:#x} of {self.region.name}"
                raise BusyError(f"an eventfd writes {what} already") from error
            raise VfioIoctlError(code, error.request, error.device, _HINTS.get(code, "")) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._fd.closed else ""
        return f"<IoEventFd {self.region.name}+{self.offset:#x} = {self.value:#x}, {8 * self.width} bits{state}>"


def _check(region: Region, offset: int, value: int, width: int) -> None:
    if width not in _WIDTHS:
        raise ArgumentError(f"width {width} is not 1, 2, 4 or 8")
    region._check(offset, width)
    if offset % width:
        raise AlignmentError(f"offset {offset:#x} is not a multiple of the width {width}")
    if not 0 <= value < 1 << 8 * width:
        raise BoundsError(f"value {value:#x} does not fit {8 * width} bits")
