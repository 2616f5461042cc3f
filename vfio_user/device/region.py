"""Regions of a device: BARs, configuration space, and what else the kernel offers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vfio_user._mmio import Mmio, Program
from vfio_user.device.dma_buf import export
from vfio_user.device.info import RegionInfo
from vfio_user.device.ioeventfd import IoEventFd
from vfio_user.device.p2p import PeerMapping, map_region
from vfio_user.device.registers import FileRegisters, Registers
from vfio_user.errors import ArgumentError, BoundsError, UnsupportedError
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.uapi import RegionFlags

if TYPE_CHECKING:
    import numpy

    from vfio_user.device.base import VfioDevice
    from vfio_user.iommu import AddressSpace

__all__ = ["Region"]


class Region:
    """One region of a device.

    ``read8`` to ``read64`` and ``write8`` to ``write64`` access registers: little-endian, naturally aligned, exactly
    one access of exactly that width, checked against the bounds and guarded by the memory lock. In a region that
    can't be mapped (I/O ports) they go through the device's file. `pread` and `pwrite` work on every region.

    Lifetime:
        Lives as long as its device. Views keep their addresses alive after that, and read all-ones.
    Locking:
        Each access is one read section of the memory lock; `access` holds one over several.
    """

    def __init__(self, vdev: VfioDevice, info: RegionInfo, mmio: Mmio | None) -> None:
        self.vdev = vdev
        """The device that it belongs to."""
        self.info = info
        """What the kernel says of it."""
        self.mmio = mmio
        """The mapped registers; `None` when the region can't be mapped."""
        self._file = FileRegisters(self.name, info.size, self.pread, self.pwrite)
        registers: Registers = self._file if mmio is None else mmio
        # Bound methods of the C type as attributes: an access costs one call, not a Python frame on top of it.
        self.read8 = registers.read8
        self.read16 = registers.read16
        self.read32 = registers.read32
        self.read64 = registers.read64
        self.write8 = registers.write8
        self.write16 = registers.write16
        self.write32 = registers.write32
        self.write64 = registers.write64

    @property
    def index(self) -> int:
        """Its index, as the uAPI counts."""
        return self.info.index

    @property
    def name(self) -> str:
        """Device and index, for messages."""
        return f"{self.vdev.name} region {self.info.index}"

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.info.size

    @property
    def flags(self) -> RegionFlags:
        """Readable, writable, mappable."""
        return self.info.flags

    # -- through the device's file

    def pread(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes through the device's file.

        Raises:
            BoundsError: outside of the region.
            UnsupportedError: the region can't be read.
            VfioOSError: EIO when memory decoding is off or the device is gone.
        """
        self._check(offset, size)
        if not self.flags & RegionFlags.READ:
            raise UnsupportedError(f"{self.name} can't be read")
        with self.vdev.user():
            return self.vdev.ops.read(self.vdev, self.info.file_offset + offset, size)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes through the device's file.

        Raises:
            UnsupportedError: the region can't be written.
            As `pread` does.
        """
        data = bytes(data)  # first: the items of a memoryview may be larger than bytes
        self._check(offset, len(data))
        if not self.flags & RegionFlags.WRITE:
            raise UnsupportedError(f"{self.name} can't be written")
        with self.vdev.user():
            self.vdev.ops.write(self.vdev, self.info.file_offset + offset, data)

    def ioeventfd(self, offset: int, value: int, *, width: int = 4) -> IoEventFd:
        """Make an eventfd that has the kernel write ``value`` to a register: ``VFIO_DEVICE_IOEVENTFD``.

        For doorbells that others ring: they need nothing of the device but the eventfd.

        Args:
            offset: of the register, a multiple of ``width``.
            value: what is written.
            width: of the register in bytes: 1, 2, 4 or 8.

        Raises:
            UnsupportedError: the device's driver has no such thing (ENOTTY).
            BusyError: there is one for this register and value already.
            BoundsError, AlignmentError, ArgumentError: the register is outside of the region, or the value of it.
            VfioIoctlError: EINVAL for what is no BAR, or the MSI-X table; ENOSPC beyond 1000 of them.
        """
        return IoEventFd(self, offset, value, width)

    # -- mapped

    def access(self, *, wait: float | None = None) -> AbstractContextManager[Mmio]:
        """Hold the memory lock over several accesses: ``with bar.access() as mmio:``.

        Sections nest. Don't wait inside of one: a reset waits for it to end.

        Args:
            wait: seconds to wait for memory that is zapped now; by default fail at once.

        Raises:
            ZappedError: the memory is taken away.
        """
        return self._mapped().access(wait=wait)

    def poll_until(self, offset: int, mask: int, equals: int, timeout: float, *, width: int = 4) -> int:
        """Read a register until ``value & mask == equals``; give the value that did.

        Each look is a read section of its own, so a reset is not kept waiting.

        Args:
            offset: of the register.
            mask: bits that matter.
            equals: what they are to be.
            timeout: seconds.
            width: of the register in bytes: 1, 2, 4 or 8.

        Raises:
            DeadlineError: it did not within ``timeout``; the message has the last value.
            ArgumentError: a width, timeout or value that can never be right.
            BoundsError, AlignmentError: the register is outside of the region, or not at a multiple of ``width``.
            ZappedError: the memory is taken away.
        """
        if not 0 <= timeout < math.inf:
            raise ArgumentError(f"timeout {timeout} is not a number of seconds from 0 on")
        if equals & ~mask:
            raise ArgumentError(f"{equals:#x} has bits that the mask {mask:#x} hides; it would never be seen")
        if self.mmio is None:
            return self._file.poll(offset, width, mask, equals, timeout)
        return self.mmio.poll(offset, width, mask, equals, timeout)

    def run(self, program: Program) -> list[int]:
        """Run a register program in one call; give what its reads and polls saw, in order."""
        return self._mapped().run(program)

    def readinto(self, offset: int, buffer: Any, *, width: int = 4) -> None:
        """Fill a writable buffer from consecutive registers of ``width`` bytes."""
        self._mapped().readinto(offset, buffer, width)

    def write_block(self, offset: int, data: Any, *, width: int = 4) -> None:
        """Write a buffer to consecutive registers of ``width`` bytes."""
        self._mapped().write_block(offset, data, width)

    def view(self, offset: int = 0, size: int | None = None) -> memoryview:
        """Give a raw view of mapped memory: format ``"B"``, unguarded, at an address that never changes.

        While the memory is zapped it reads all-ones, and writes do not reach the device. Mind the width of what you do
        with it: a copy of bytes is no register access.

        That is a fault handler's work, and has limits: what is written to a zapped page can be read back until the
        memory is taken away the next time; a system call that is given zapped memory fails (EFAULT); a thread that
        blocks SIGSEGV and SIGBUS is killed by a touch; and ``faulthandler.enable()`` or ``signal.signal()`` for them,
        called after the device was opened, take the handler's place until the next open or reset, or
        `vfio_user.memory.install_handler`. Accessors touch no zapped memory; they need the handler only where the
        kernel refuses an access by itself (SIGBUS).
        """
        return self._mapped().view(offset, self.size - offset if size is None else size)

    def array(self, dtype: Any = "<u4") -> numpy.ndarray[Any, Any]:
        """Give a numpy array over the whole region, without a copy; a raw view like `view`."""
        import numpy

        return numpy.frombuffer(self.view(), dtype=dtype)

    def map_for(
        self,
        space: AddressSpace,
        offset: int = 0,
        size: int | None = None,
        *,
        iova: int | None = None,
        iova_limit: int | None = None,
        read: bool = True,
        write: bool = True,
    ) -> PeerMapping:
        """Let the devices of an address space reach this memory (peer to peer).

        It is taken from them while the memory is away, and comes back with it at the same IOVA. Don't map a view by
        `AddressSpace.map` instead: nobody would take that away.

        Args:
            space: the address space of the devices that are to reach it.
            offset: where the part begins, a multiple of the page size.
            size: its size in bytes; by default up to the end.
            iova: where; by default the address space chooses.
            iova_limit: see `AddressSpace.alloc`.
            read: devices may read it.
            write: devices may write it.

        Raises:
            UnsupportedError: the region can't be mapped.
            ZappedError: the memory is away.
            BoundsError, AlignmentError: the part is outside of what is mapped, or not made of whole pages.
            VfioIoctlError: the kernel refused: EFAULT when decoding is off, or where this IOMMU can't do it.
        """
        self._mapped()
        return map_region(self, space, offset, size, iova=iova, iova_limit=iova_limit, read=read, write=write)

    def export_dma_buf(self, parts: Sequence[tuple[int, int]] | None = None, *, write: bool = True) -> OwnedFd:
        """Make a file of parts of this memory that iommufd and other drivers of the kernel can map: ``DMA_BUF``.

        The kernel revokes it while the memory is away (reset, decoding off, low power, close): who has mapped it meets
        a fault then, and maps it again afterwards. `map_for` does all that by itself.

        Args:
            parts: offset and size of each, whole pages; by default one, the whole region. iommufd maps files of one
                part only.
            write: others may write to it.

        Returns:
            The file, which the caller closes.

        Raises:
            ArgumentError: ``parts`` is empty.
            UnsupportedError: the kernel can't (before 6.19), or the region is no memory that others could reach.
            BoundsError, AlignmentError: a part is outside of the region, or not made of whole pages.
        """
        return export(self, [(0, self.size)] if parts is None else parts, write=write)

    # -- inside

    def _mapped(self) -> Mmio:
        if self.mmio is None:
            raise UnsupportedError(f"{self.name} can't be mapped; use read32 and its kin, or pread and pwrite")
        return self.mmio

    def _check(self, offset: int, size: int) -> None:
        if size <= 0 or offset < 0 or offset + size > self.size:
            raise BoundsError(f"{size} bytes at offset {offset:#x} are outside of {self.name}, {self.size:#x} bytes")

    def __repr__(self) -> str:
        mapped = " mapped" if self.mmio is not None else ""
        return f"<Region {self.name} {self.size:#x} bytes{mapped}>"
