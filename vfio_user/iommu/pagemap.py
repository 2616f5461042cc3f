"""Where memory is, for devices without an IOMMU: ``/proc/self/pagemap``."""

from __future__ import annotations

import struct

from vfio_user._uapi import lib
from vfio_user.errors import IovaError, UnsupportedError, VfioOSError
from vfio_user.kernel.mman import PAGE_SIZE

__all__ = ["lock_and_find", "unlock"]

_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1


def lock_and_find(vaddr: int, size: int) -> int:
    """Lock memory and give its physical address, at which all of it is contiguous.

    Locked pages stay in memory, but the kernel may still move small ones when it compacts memory, and a device would
    then write to somebody else's: turn that off (``vm.compact_unevictable_allowed=0``), or use huge pages, which stay
    where they are.

    Source: ``Documentation/admin-guide/mm/pagemap.rst``.

    Raises:
        IovaError: it is not contiguous.
        UnsupportedError: this process is not told (CAP_SYS_ADMIN).
        VfioOSError: it can't be locked (ENOMEM: RLIMIT_MEMLOCK).
    """
    code = lib.vu_mlock(vaddr, size)
    if code < 0:
        raise VfioOSError(-code, f"lock {size} bytes of memory", "Raise RLIMIT_MEMLOCK: ulimit -l")
    try:
        return _find(vaddr, size)
    except BaseException:
        unlock(vaddr, size)
        raise


def unlock(vaddr: int, size: int) -> None:
    """Let memory go that `lock_and_find` locked."""
    lib.vu_munlock(vaddr, size)


def _find(vaddr: int, size: int) -> int:
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(vaddr // PAGE_SIZE * 8)
        count = size // PAGE_SIZE
        raw = pagemap.read(count * 8)
    entries = [entry for (entry,) in struct.iter_unpack("=Q", raw)]
    if len(entries) != count or not all(entry & _PRESENT for entry in entries):
        raise IovaError(f"the kernel does not say where the memory at {vaddr:#x} is: some of it is not there")
    frames = [entry & _FRAME for entry in entries]
    if not all(frames):
        raise UnsupportedError("/proc/self/pagemap tells where memory is to who has CAP_SYS_ADMIN only")
    same = next((n for n in range(count) if frames[n] != frames[0] + n), count)
    if same < count:
        raise IovaError(
            f"the memory is not contiguous: {same * PAGE_SIZE:#x} bytes of {size:#x} are at "
            f"{frames[0] * PAGE_SIZE:#x}, and without an IOMMU a device needs all of it in one piece; "
            "alloc() gives such memory"
        )
    return int(frames[0]) * PAGE_SIZE
