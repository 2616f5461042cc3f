"""A kernel that answers every request with whatever bytes it is given."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi
from vfio_user.kernel import ioctl
from vfio_user.kernel.ioctl import MAX_REPLY, requests

if TYPE_CHECKING:
    from vfio_user._uapi import CData

__all__ = ["Bytes", "hostile_kernel"]

_ERRNOS = (errno.EINVAL, errno.ENOTTY, errno.ENOSPC, errno.EMSGSIZE, errno.ENODEV, errno.EOPNOTSUPP, errno.EIO, 4095)
_SMALL = 4096  # an argument below is no pointer
#: Where a structure carries the address of more memory that the kernel writes to, and how much.
_FURTHER = {
    requests.IOMMU_GET_HW_INFO.number: ("struct iommu_hw_info", "data_uptr", "data_len", 1),
    requests.IOMMU_IOAS_IOVA_RANGES.number: ("struct iommu_ioas_iova_ranges", "allowed_iovas", "num_iovas", 16),
}


class Bytes:
    """Bytes that are taken one after the other; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Take some."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found.ljust(size, b"\0")

    def number(self, limit: int) -> int:
        """Take a number below a limit."""
        return int(struct.unpack("<H", self.take(2))[0]) % limit

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(max(0, len(self._data) - self._at))


@contextmanager
def hostile_kernel(source: Bytes) -> Iterator[None]:
    """Let every ``ioctl()`` of the package be answered from some bytes, until the block ends."""

    def system_call(fd: int, number: int, pointer: CData) -> int:
        verdict = source.take(1)[0]
        address = int(ffi.cast("uintptr_t", pointer))
        if address >= _SMALL:
            _scribble(source, number, pointer, keep_size=not verdict & 1)
        if verdict & 6 == 6:
            return -_ERRNOS[verdict >> 3 & 7]
        return verdict >> 3

    before = ioctl.system_call
    ioctl.system_call = system_call
    try:
        yield
    finally:
        ioctl.system_call = before


def _scribble(source: Bytes, number: int, pointer: CData, *, keep_size: bool) -> None:
    """Write over a structure whose first member is its size, and over what it points to."""
    (size,) = struct.unpack("=I", ffi.buffer(ffi.cast("uint8_t *", pointer), 4))
    assert size <= MAX_REPLY + 64, "the package asks for more than it ever takes"
    if number in _FURTHER:
        ctype, place, count, unit = _FURTHER[number]
        asked = ffi.cast(f"{ctype} *", pointer)
        length = getattr(asked, count) * unit
        ffi.memmove(ffi.cast("uint8_t *", getattr(asked, place)), source.take(length), length)
    body = source.take(size)
    if keep_size:
        body = struct.pack("=I", size) + body[4:]
    ffi.memmove(pointer, body, size)
