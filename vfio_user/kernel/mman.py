"""The mmap helpers: memory that a device may use for DMA, with an address and a size.

No package named ``mmap-helpers`` is published; this module is what such a package would hold. Windows of device memory
are not here: they belong to `vfio_user.memory`.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
from dataclasses import dataclass

from vfio_user._uapi import ffi, lib
from vfio_user.addresses import Vaddr
from vfio_user.errors import ArgumentError, VfioOSError

__all__ = ["PAGE_SIZE", "Backing", "Memory", "address_of", "allocate", "open_memory", "round_up"]

PAGE_SIZE = mmap.PAGESIZE
"""Size of a page of this machine, in bytes."""

_HUGE_2M = 2 << 20
_HUGE_1G = 1 << 30
_MADV_COLLAPSE = 25  # of asm-generic/mman-common.h; C libraries before 2.37 lack it


class Backing(enum.Enum):
    """What stands behind a piece of memory."""

    ANONYMOUS = "anonymous"
    """Private pages of this process; transparent huge pages from 2 MiB on. A forked child sees zeros."""
    MEMFD = "memfd"
    """A memory file, which can be passed to another process."""
    HUGE_2M = "huge2m"
    """Pages of 2 MiB from the kernel's pool (``vm.nr_hugepages``)."""
    HUGE_1G = "huge1g"
    """Pages of 1 GiB from the kernel's pool (``hugepagesz=1G hugepages=N`` on the kernel command line)."""

    @property
    def page_size(self) -> int:
        """Bytes of one page of this backing."""
        return {Backing.HUGE_2M: _HUGE_2M, Backing.HUGE_1G: _HUGE_1G}.get(self, PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of page-aligned memory.

    Lifetime:
        The memory goes when the last view of it goes; there is nothing to close but the memory file.
    """

    view: memoryview
    """All of it: writable, format ``"B"``, contiguous."""
    address: Vaddr
    """Address of its first byte."""
    backing: Backing
    """What stands behind it."""
    fd: int
    """The memory file, owned by this object's user; -1 where there is none."""

    @property
    def size(self) -> int:
        """Size in bytes, a multiple of the page size of its backing."""
        return self.view.nbytes


def round_up(value: int, unit: int) -> int:
    """Round a value up to a multiple of ``unit``, which is a power of two."""
    return (value + unit - 1) & -unit


def address_of(buffer: memoryview) -> Vaddr:
    """Give the address of a contiguous buffer's first byte; the caller keeps the buffer alive."""
    return Vaddr(int(ffi.cast("uintptr_t", ffi.from_buffer(buffer))))


def allocate(size: int, backing: Backing = Backing.ANONYMOUS, *, contiguous: bool = False) -> Memory:
    """Allocate zeroed memory of at least ``size`` bytes, rounded up to whole pages of its backing.

    With ``contiguous`` it is in memory already, and anonymous memory of more than a page begins a huge page if the
    kernel has one to give: so up to 2 MiB are contiguous for a device without an IOMMU. That is not sure: ask where
    it is.

    Raises:
        ArgumentError: the size is not positive.
        VfioOSError: no memory (ENOMEM); for huge pages the message says how to reserve them.
    """
    if size <= 0:
        raise ArgumentError(f"size {size} is not positive")
    size = round_up(size, backing.page_size)
    try:
        if backing is Backing.ANONYMOUS:
            return _contiguous(size) if contiguous and size > PAGE_SIZE else _anonymous(size)
        return _memory_file(size, backing)
    except (OSError, OverflowError) as error:
        # An overflow is Python's: the size does not fit the argument of the system call.
        code = error.errno if isinstance(error, OSError) else None
        raise VfioOSError(
            code or errno.ENOMEM, f"allocate {size} bytes ({backing.value})", _hint(size, backing)
        ) from error


def _anonymous(size: int) -> Memory:
    # Transparent huge pages need an address that is a multiple of 2 MiB, which mmap does not promise.
    slack = _HUGE_2M if size >= _HUGE_2M else 0
    mapping = mmap.mmap(-1, size + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A fork must not turn pinned pages into copy-on-write ones: the parent would write to a copy that the device
    # never sees. Wiping them in the child avoids that, and a stray access of the child reads zeros and lives.
    mapping.madvise(int(lib.MADV_WIPEONFORK))
    whole = memoryview(mapping)
    start = -address_of(whole) % _HUGE_2M if slack else 0
    if slack and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:  # a kernel without transparent huge pages says EINVAL
            if error.errno != errno.EINVAL:
                raise
    view = whole[start : start + size]
    return Memory(view, address_of(view), Backing.ANONYMOUS, -1)


def _contiguous(size: int) -> Memory:
    memory = _anonymous(max(size, _HUGE_2M))
    # Pages that came one by one are gathered into a huge one; a kernel that can't (before 6.1), or has none free, says
    # so, and whoever asked finds out when it looks where the memory is.
    lib.vu_madvise(memory.address, memory.size, lib.MADV_POPULATE_WRITE)
    lib.vu_madvise(memory.address, memory.size & -_HUGE_2M, _MADV_COLLAPSE)
    return Memory(memory.view[:size], memory.address, memory.backing, memory.fd)


def _memory_file(size: int, backing: Backing) -> Memory:
    flags = os.MFD_CLOEXEC
    if backing is Backing.HUGE_2M:
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    elif backing is Backing.HUGE_1G:
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_1GB
    fd = os.memfd_create("vfio-user-dma", flags)
    try:
        os.ftruncate(fd, size)
        view = memoryview(mmap.mmap(fd, size, flags=mmap.MAP_SHARED))
        return Memory(view, address_of(view), backing, fd)
    except BaseException:
        os.close(fd)
        raise


def open_memory(fd: int, size: int, backing: Backing) -> Memory:
    """Map a memory file of `allocate` into this process, which has got it from another one; it is the caller's still.

    Raises:
        VfioOSError: it can't be mapped, or is shorter.
    """
    try:
        if os.fstat(fd).st_size < size:
            raise OSError(errno.EINVAL, "shorter")
        view = memoryview(mmap.mmap(fd, size, flags=mmap.MAP_SHARED))
    except (OSError, ValueError, OverflowError) as error:
        code = error.errno if isinstance(error, OSError) else None
        raise VfioOSError(code or errno.EINVAL, f"map {size} bytes of memory file {fd}") from error
    return Memory(view, address_of(view), backing, fd)


def _hint(size: int, backing: Backing) -> str:
    if backing is Backing.HUGE_2M:
        pages = size // _HUGE_2M
        return f"Reserve huge pages first: sysctl vm.nr_hugepages={pages} (or more, if others use some)"
    if backing is Backing.HUGE_1G:
        pages = size // _HUGE_1G
        return (
            f"Reserve pages of 1 GiB first: hugepagesz=1G hugepages={pages} on the kernel command line, "
            f"or echo {pages} > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
        )
    return ""
