"""Count accesses to an address with the processor's debug registers (``perf_event_open``)."""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from types import TracebackType
from typing import Self

_SYSCALL = {"x86_64": 298, "aarch64": 241, "s390x": 331}[os.uname().machine]
_TYPE_BREAKPOINT = 5
_EXCLUDE_KERNEL_AND_HYPERVISOR = 0b110_0000
_READ_WRITE = 3
_CLOEXEC = 8

_libc = ctypes.CDLL(None, use_errno=True)


class Watchpoint:
    """Count this thread's loads and stores that touch ``[address, address + size)``."""

    def __init__(self, address: int, size: int) -> None:
        attributes = bytearray(128)
        struct.pack_into("=II", attributes, 0, _TYPE_BREAKPOINT, len(attributes))
        struct.pack_into("=Q", attributes, 40, _EXCLUDE_KERNEL_AND_HYPERVISOR)
        struct.pack_into("=I", attributes, 52, _READ_WRITE)
        struct.pack_into("=QQ", attributes, 56, address, size)
        raw = (ctypes.c_char * len(attributes)).from_buffer(attributes)
        self._fd = _libc.syscall(_SYSCALL, raw, 0, -1, -1, _CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def hits(self) -> int:
        (count,) = struct.unpack("=Q", os.read(self._fd, 8))
        return int(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


@cache
def watchpoints_work() -> bool:
    """Tell whether this kernel lets us count at all."""
    word = ctypes.c_uint64()
    try:
        with Watchpoint(ctypes.addressof(word), 8) as watchpoint:
            word.value = 1
            return watchpoint.hits() > 0
    except OSError:
        return False
