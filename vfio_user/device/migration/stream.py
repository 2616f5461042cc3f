"""The file through which a device gives its state away, or takes one."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vfio_user._uapi import ffi, lib
from vfio_user.errors import MalformedReplyError, UnsupportedError, VfioIoctlError, VfioOSError
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import ioctl, requests

__all__ = ["MigrationStream", "PrecopyInfo"]


@dataclass(frozen=True, slots=True)
class PrecopyInfo:
    """How much a running device has left to give, as it estimates: ``VFIO_MIG_GET_PRECOPY_INFO``."""

    initial_bytes: int
    """Of what is to be moved first, before anything else is worth it."""
    dirty_bytes: int
    """Of what has changed since it was moved."""
    reinitialized: bool = False
    """The device begins anew: `initial_bytes` has grown again. Kernels before 7.2 never say so."""


class MigrationStream:
    """A device's state as a stream of bytes, whose meaning is its driver's business.

    Lifetime:
        `close()`, or the ``with`` block. It ends with the states that it belongs to, by `Migration.set_state`, by a
        reset and by closing the device: the kernel refuses it then (ENODEV).
    Locking:
        One thread at a time.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = OwnedFd(fd, f"migration data of {name}")
        self._name = name

    def fileno(self) -> int:
        """Give the descriptor. Drivers need not support polling for it: reads and writes block."""
        return self._fd.fileno()

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self._fd.closed

    def read(self, size: int = 1 << 20) -> bytes:
        """Read up to so many bytes; none at the end.

        While the device runs (PRE_COPY), none means that there is nothing more for now.

        Raises:
            VfioOSError: ENODEV when the stream has ended.
        """
        try:
            return os.read(self.fileno(), size)
        except OSError as error:
            if error.errno == errno.ENOMSG:
                return b""
            raise VfioOSError(error.errno or 0, f"read {self._fd.name}") from error

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of it; give the number of bytes.

        Raises:
            VfioOSError: the driver does not take it, with an errno of its own choice; ENODEV when the stream has ended.
        """
        left = memoryview(data).cast("B")
        while left:
            try:
                left = left[os.write(self.fileno(), left) :]
            except OSError as error:
                done = len(data) - len(left)
                what = f"write byte {done} and following of {len(data)} to {self._fd.name}"
                raise VfioOSError(
                    error.errno or 0, what, "Most often: it is the state of another kind of device"
                ) from error
        return len(data)

    def precopy_info(self) -> PrecopyInfo:
        """Ask how much is left while the device runs: ``VFIO_MIG_GET_PRECOPY_INFO``.

        Raises:
            UnsupportedError: it is no stream of a running device.
            VfioIoctlError: EINVAL when the device runs no longer; ENODEV when the stream has ended.
            MalformedReplyError: flags that have no meaning.
        """
        ctype = "struct vfio_precopy_info"
        reply = ffi.new(f"{ctype} *", {"argsz": ffi.sizeof(ctype)})
        try:
            ioctl(self.fileno(), requests.VFIO_MIG_GET_PRECOPY_INFO, reply, device=self._name)
        except VfioIoctlError as error:
            if error.errno == errno.ENOTTY:
                raise UnsupportedError(f"{self._fd.name}: the device has nothing to say of what is left") from error
            raise
        if reply.flags & ~lib.VFIO_PRECOPY_INFO_REINIT:
            raise MalformedReplyError(f"{self._fd.name}: flags {reply.flags:#x} have no meaning")
        return PrecopyInfo(
            int(reply.initial_bytes), int(reply.dirty_bytes), bool(reply.flags & lib.VFIO_PRECOPY_INFO_REINIT)
        )

    def close(self) -> None:
        """Close it; closing twice does nothing. The device stays in its state."""
        self._fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MigrationStream of {self._name}{' closed' if self.closed else ''}>"
