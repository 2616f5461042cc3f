"""Requests of iommufd: each takes one structure that begins with its own size."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from vfio_user._uapi import ffi
from vfio_user.errors import UnsupportedError, VfioIoctlError
from vfio_user.kernel.ioctl import Request, ioctl

if TYPE_CHECKING:
    from vfio_user._uapi import CData
    from vfio_user.kernel.fd import OwnedFd

__all__ = ["Hints", "address", "command", "send"]

Hints: TypeAlias = Mapping[int, str] | Callable[[int], str]
"""By errno, what the user can do about a request that failed; a function where that takes a look at the machine."""


def command(fd: OwnedFd, request: Request, ctype: str, /, *, hints: Hints | None = None, **fields: object) -> CData:
    """Make one request and give its structure as the kernel left it.

    Args:
        fd: an open ``/dev/iommu``.
        request: what to ask.
        ctype: its structure: ``"struct iommu_ioas_alloc"``.
        hints: what the user can do about a failure.
        fields: members that are input.

    Raises:
        UnsupportedError: the kernel does not know the request (ENOTTY), or neither it nor the IOMMU can do what was
            asked for (EOPNOTSUPP).
        VfioIoctlError: the kernel refused for another reason.
    """
    argument = ffi.new(f"{ctype} *", {"size": ffi.sizeof(ctype), **fields})
    send(fd, request, argument, hints=hints)
    return argument


def send(fd: OwnedFd, request: Request, argument: CData, /, *, hints: Hints | None = None) -> None:
    """Make one request with a structure of the caller's, which has output also when the request fails.

    Raises as `command` does.
    """
    try:
        ioctl(fd.fileno(), request, argument, device=fd.name)
    except VfioIoctlError as error:
        code = error.errno or 0
        hint = "" if hints is None else hints.get(code, "") if isinstance(hints, Mapping) else hints(code)
        if code == errno.ENOTTY:
            raise UnsupportedError(f"this kernel has no {request.name}") from error
        if code == errno.EOPNOTSUPP:
            why = hint or "neither this kernel nor its IOMMU can do that"
            raise UnsupportedError(f"{request.name}: {why}") from error
        raise VfioIoctlError(code, request.name, fd.name, hint) from error


def address(data: CData) -> int:
    """Give the address of an array, for a member of a structure that carries one as an integer."""
    return int(ffi.cast("uintptr_t", data))
