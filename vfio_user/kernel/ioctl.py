"""``ioctl()``, and the three patterns that the uAPI uses it in: growing replies, capability chains, features.

Everything above this module asks the kernel through it: a test that replaces `system_call` replaces that.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi, lib
from vfio_user.errors import ArgumentError, MalformedReplyError, VfioIoctlError
from vfio_user.kernel import tracing
from vfio_user.kernel.request import Request, requests

if TYPE_CHECKING:
    from vfio_user._uapi import CData

__all__ = [
    "MAX_REPLY",
    "Reply",
    "Request",
    "capabilities",
    "feature_get",
    "feature_probe",
    "feature_set",
    "ioctl",
    "ioctl_many",
    "query",
    "requests",
]

#: The seam for tests: ``(fd, number, argument) -> result or -errno``, with the GIL released.
system_call: Callable[[int, int, CData], int] = lib.vu_ioctl
#: The same for `ioctl_many`: ``(fd, number, arguments, stride, count, done) -> 0 or -errno``.
system_call_many: Callable[[int, int, CData, int, int, CData], int] = lib.vu_ioctl_many

#: No reply is longer, in bytes; the longest known, a list of IOVA ranges, has some hundreds.
MAX_REPLY = 1 << 20
# What is asked for may grow between two calls (a device joins, a range splits), but not for ever.
_ROUNDS = 8

_HEADER = struct.Struct("=HHI")  # struct vfio_info_cap_header


@dataclass(frozen=True, slots=True)
class Reply:
    """What the kernel answered.

    Lifetime:
        Owns its memory; `data` keeps it alive by itself.
    Locking:
        None.
    """

    value: int
    """What ``ioctl()`` returned; a file descriptor for some features."""
    data: CData
    """Pointer to the structure."""
    raw: bytes
    """All bytes of the reply, the structure at 0; offsets in a capability chain count from here."""


def ioctl(fd: int, request: Request, arg: CData | int = 0, /, *, device: str = "") -> int:
    """Make one request; interrupted calls are made again, after Python has run its signal handlers.

    Args:
        fd: descriptor of a container, group, device, iommufd or migration file.
        request: what to ask, from `requests` or `Request.private()`.
        arg: pointer to the argument, or an integer for the few requests that take one.
        device: what the file is, for messages.

    Returns:
        What the kernel returned, zero or positive.

    Raises:
        VfioIoctlError: the kernel refused; errno is kept.
    """
    pointer = ffi.cast("void *", arg) if isinstance(arg, int) else arg
    begin = None if tracing.sink is None else time.monotonic_ns()
    while (result := system_call(fd, request.number, pointer)) == -errno.EINTR:
        pass
    if begin is not None:
        tracing.report_ioctl(begin, request.name, pointer, result, fd=fd, device=device)
    if result < 0:
        raise VfioIoctlError(-result, request.name, device)
    return result


def ioctl_many(fd: int, request: Request, args: CData, /) -> tuple[int, int]:
    """Make one request for each element of an array, in one call, until one fails.

    Args:
        fd: descriptor, as for `ioctl()`.
        request: what to ask.
        args: array of arguments: ``ffi.new("struct vfio_iommu_type1_dma_map[]", count)``.

    Returns:
        How many succeeded, from the front, and the errno of the one that failed; 0 when none did.
    """
    count = len(args)
    stride = ffi.sizeof(args) // count if count else 0
    done = ffi.new("size_t *")
    begin = None if tracing.sink is None else time.monotonic_ns()
    result = system_call_many(fd, request.number, args, stride, count, done)
    if begin is not None:
        tracing.report_ioctl(begin, request.name, args, result, fd=fd, count=count, done=int(done[0]))
    return int(done[0]), -result


def query(
    fd: int,
    request: Request,
    ctype: str,
    /,
    *,
    device: str = "",
    needed: Callable[[CData], int] | None = None,
    room: int = 0,
    **fields: int,
) -> Reply:
    """Ask for a structure that says by ``argsz`` how long the reply is; ask again with room for all of it.

    Args:
        fd: descriptor, as for `ioctl()`.
        request: what to ask.
        ctype: the structure, its first member ``argsz``: ``"struct vfio_region_info"``.
        device: what the file is, for messages.
        needed: for requests that fail with ENOSPC instead of setting ``argsz``: gives the length in bytes
            that the kernel wants, from what it did write.
        room: bytes behind the structure to begin with, where it is known to be longer.
        fields: members that are input.

    Raises:
        VfioIoctlError: the kernel refused.
        MalformedReplyError: the length that it asks for is absurd, or grows without end.
    """
    size = ffi.sizeof(ctype) + room
    for _ in range(_ROUNDS):
        buffer = bytearray(size)
        data = ffi.from_buffer(f"{ctype} *", buffer)
        for name, value in fields.items():
            setattr(data, name, value)
        data.argsz = size
        try:
            value = ioctl(fd, request, data, device=device)
            wanted = int(data.argsz)
        except VfioIoctlError as error:
            if needed is None or error.errno != errno.ENOSPC:
                raise
            wanted = max(needed(data), size + 1)
        if wanted <= size:
            return Reply(value, data, bytes(buffer))
        if wanted > MAX_REPLY:
            raise MalformedReplyError(f"{request} on {device}: the reply would have {wanted} bytes")
        size = wanted
    raise MalformedReplyError(f"{request} on {device}: the reply still grows, at {size} bytes")


def capabilities(raw: bytes, first_offset: int) -> Iterator[tuple[int, int, int]]:
    """Walk the capability chain of a reply.

    Args:
        raw: the whole reply.
        first_offset: its ``cap_offset``; 0 for no capabilities.

    Yields:
        Id, version and offset of each capability; 8 bytes of header at the offset are inside of `raw`, how
        much follows is for the caller to check.

    Raises:
        MalformedReplyError: a capability lies outside of the reply, or the chain goes round in a circle.
    """
    seen: set[int] = set()
    offset = first_offset
    while offset != 0:
        if not 0 < offset <= len(raw) - _HEADER.size:
            raise MalformedReplyError(f"capability at {offset} lies outside of the reply of {len(raw)} bytes")
        if offset in seen:
            raise MalformedReplyError(f"the capability chain comes back to offset {offset}")
        seen.add(offset)
        identity, version, following = _HEADER.unpack_from(raw, offset)
        yield identity, version, offset
        offset = following


def feature_probe(fd: int, feature: int, operation: int, /, *, device: str = "") -> bool:
    """Tell whether a device has an operation of a feature: ``VFIO_DEVICE_FEATURE`` with the PROBE flag.

    Args:
        fd: descriptor of the device.
        feature: ``lib.VFIO_DEVICE_FEATURE_…``.
        operation: ``lib.VFIO_DEVICE_FEATURE_GET`` or ``_SET``, or both to ask for a feature that has both.
        device: what the file is, for messages.

    Raises:
        VfioIoctlError: an errno that does not mean "no": neither ENOTTY nor EINVAL.
    """
    try:
        _feature(fd, feature, operation | lib.VFIO_DEVICE_FEATURE_PROBE, b"", device)
    except VfioIoctlError as error:
        # ENOTTY: no such feature, or a kernel without features. EINVAL: the feature lacks the operation.
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    return True


def feature_get(fd: int, feature: int, ctype: str, /, *, device: str = "", **fields: object) -> Reply:
    """Read a feature of a device: ``VFIO_DEVICE_FEATURE`` with the GET flag.

    Args:
        fd: descriptor of the device.
        feature: ``lib.VFIO_DEVICE_FEATURE_…``.
        ctype: the feature's structure: ``"struct vfio_device_feature_migration"``.
        device: what the file is, for messages.
        fields: members that are input; a list fills a flexible array.

    Raises:
        VfioIoctlError: ENOTTY without the feature, EINVAL without the operation, or the feature's own.
    """
    return _typed(fd, feature, lib.VFIO_DEVICE_FEATURE_GET, ctype, fields, device)


def feature_set(
    fd: int,
    feature: int,
    ctype: str | None = None,
    /,
    *,
    payload: bytes = b"",
    device: str = "",
    **fields: object,
) -> Reply:
    """Write a feature of a device: ``VFIO_DEVICE_FEATURE`` with the SET flag.

    Args:
        fd: descriptor of the device.
        feature: ``lib.VFIO_DEVICE_FEATURE_…``.
        ctype: the feature's structure; `None` for one that has no data, or only bytes.
        payload: the bytes, where there is no structure: a VF token has 16.
        device: what the file is, for messages.
        fields: members of the structure; a list fills a flexible array.

    Raises:
        ArgumentError: both a structure and bytes.
        VfioIoctlError: ENOTTY without the feature, EINVAL without the operation, or the feature's own.
    """
    if ctype is not None:
        if payload:
            raise ArgumentError(f"{ctype} and {len(payload)} bytes of payload: a feature takes one of them")
        return _typed(fd, feature, lib.VFIO_DEVICE_FEATURE_SET, ctype, fields, device)
    if fields:
        raise ArgumentError(f"members {', '.join(fields)} without a structure")
    value, raw = _feature(fd, feature, lib.VFIO_DEVICE_FEATURE_SET, payload, device)
    return Reply(value, ffi.from_buffer("uint8_t[]", raw), bytes(raw))


def _typed(fd: int, feature: int, operation: int, ctype: str, fields: dict[str, object], device: str) -> Reply:
    initial = ffi.new(f"{ctype} *", fields)
    value, raw = _feature(fd, feature, operation, bytes(ffi.buffer(initial)), device)
    return Reply(value, ffi.from_buffer(f"{ctype} *", raw), bytes(raw))


def _feature(fd: int, feature: int, operation: int, payload: bytes, device: str) -> tuple[int, bytearray]:
    """Make the request and give its value and the payload as the kernel left it."""
    if not 0 <= feature <= lib.VFIO_DEVICE_FEATURE_MASK:
        raise ArgumentError(f"feature {feature} is not within 0..{lib.VFIO_DEVICE_FEATURE_MASK}")
    head = ffi.sizeof("struct vfio_device_feature")
    buffer = bytearray(head + len(payload))
    buffer[head:] = payload
    argument = ffi.from_buffer("struct vfio_device_feature *", buffer)
    argument.argsz = len(buffer)
    argument.flags = feature | operation
    value = ioctl(fd, requests.VFIO_DEVICE_FEATURE, argument, device=device)
    return value, bytearray(memoryview(buffer)[head:])
