"""The back end of an address space that is made of an iommufd."""

from __future__ import annotations

import errno
import threading
import weakref

from vfio_user.addresses import Iova
from vfio_user.errors import IovaError, UnsupportedError, VfioError, VfioIoctlError
from vfio_user.iommu import explain
from vfio_user.iommu.bulk import Mapped, Results, Runs, map_in_ioas, one_by_one, unmap_in_ioas
from vfio_user.iommu.files import SpaceFiles
from vfio_user.iommu.info import IommuInfo
from vfio_user.iommu.iommufd.device import BoundDevice, bind
from vfio_user.iommu.iommufd.dirty import HwptDirtyLog
from vfio_user.iommu.iommufd.fd import Iommufd
from vfio_user.iommu.iommufd.ioas import Ioas
from vfio_user.iommu.modes import IommuMode
from vfio_user.iommu.scatter import Scatter
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import PAGE_SIZE
from vfio_user.kernel.sysfs import VfioNode

__all__ = ["IommufdBackend", "NoiommuIommufdBackend"]


class IommufdBackend:
    """An iommufd with one address space, which devices are attached to by their own nodes.

    Lifetime:
        The iommufd stays open until `close()`; devices may be closed before or after.
    Locking:
        The kernel serialises what is asked of it, and opens several devices at a time. A lock of its own covers what is
        kept of them.
    """

    maps_files = True
    emptied = False

    def __init__(self, mode: IommuMode, files: SpaceFiles | None = None) -> None:
        self._mode = mode
        self._lock = threading.Lock()
        self._devices: weakref.WeakSet[BoundDevice] = weakref.WeakSet()
        self._log: HwptDirtyLog | None = None
        self.iommufd = Iommufd(files.control if files is not None else None)
        """The iommufd, for what an address space has no verb for."""
        try:
            self.ioas = Ioas(self.iommufd, files.ioas) if files is not None else self.iommufd.alloc_ioas()
            """Its address space."""
        except BaseException:
            self.iommufd.close()
            raise

    @property
    def mode(self) -> IommuMode:
        """Which of the iommufd modes this is."""
        return self._mode

    @property
    def files(self) -> SpaceFiles:
        """What it is made of."""
        return SpaceFiles(self._mode, self.iommufd.fd, (), self.ioas.id)

    def attach(self, node: VfioNode, *, vf_token: str | None = None) -> BoundDevice:
        """Bind a device to the iommufd and attach it to the address space.

        Raises as `bind` and `BoundDevice.attach_pt` do.
        """
        device = bind(node, self.iommufd, vf_token=vf_token)
        try:
            device.attach_pt(self.ioas)
            with self._lock:
                if self._log is not None:
                    self._log.take(device)
                self._devices.add(device)
        except BaseException:
            device.close()
            raise
        return device

    def take_over(self, fd: OwnedFd, name: str, device_id: int) -> BoundDevice:
        """Make a device of a file that came from elsewhere, bound to this iommufd and attached already."""
        device = BoundDevice(fd.detach(), name, self.iommufd, device_id)
        with self._lock:
            self._devices.add(device)
        return device

    def info(self) -> IommuInfo:
        """Ask for the usable ranges."""
        found = self.ioas.ranges()
        # Attached devices that have no IOMMU of their own (mediated ones) set no alignment.
        return IommuInfo(max(found.alignment, PAGE_SIZE), found.ranges, None)

    def map(self, iova: Iova | None, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> Iova:
        """Map process memory; see `Ioas.map`."""
        return self.ioas.map(vaddr, size, iova, read=read, write=write)

    def map_file(
        self, iova: Iova | None, fd: int, offset: int, size: int, *, read: bool = True, write: bool = True
    ) -> Iova:
        """Map a part of a file; see `Ioas.map_file`."""
        return self.ioas.map_file(fd, offset, size, iova, read=read, write=write)

    def unmap(self, iova: int, size: int) -> int:
        """Unmap a range; see `Ioas.unmap`. Nothing at all is no error, as in a container."""
        try:
            return self.ioas.unmap(iova, size)
        except VfioIoctlError as error:
            if error.errno != errno.ENOENT:
                raise
            return 0

    def unmap_all(self) -> int:
        """Unmap everything; see `Ioas.unmap_all`."""
        return self.ioas.unmap_all()

    def map_pieces(self, iova: Iova, scatter: Scatter, *, read: bool = True, write: bool = True) -> Mapped:
        """Map pieces of memory one after the other; see `bulk.map_in_ioas`."""

        def again(place: int, vaddr: int, size: int) -> None:
            self.ioas.map(vaddr, size, place, read=read, write=write)

        return map_in_ioas(self.iommufd.fd, self.ioas.id, iova, scatter, again, read=read, write=write)

    def unmap_runs(self, runs: Runs) -> Results:
        """Unmap ranges; see `bulk.unmap_in_ioas`."""
        return unmap_in_ioas(self.iommufd.fd, self.ioas.id, runs)

    def start_dirty_log(self) -> HwptDirtyLog:
        """Move the devices to page tables that track what is written; see `HwptDirtyLog`.

        Raises:
            UnsupportedError: an IOMMU can't.
        """
        page_sizes = self.info().page_sizes
        with self._lock:
            devices = [each for each in self._devices if not each.closed]
            self._log = HwptDirtyLog(self.ioas, devices, page_sizes)
            return self._log

    def invalidate_vaddrs(self) -> int:
        """Refuse: mappings of files have no address, and others can't change theirs.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(explain.no_new_addresses(self._mode.value))

    def update_vaddr(self, iova: int, size: int, vaddr: int) -> None:
        """Refuse likewise."""
        raise UnsupportedError(explain.no_new_addresses(self._mode.value))

    def close(self) -> None:
        """Close the iommufd: what devices hold of it ends with them."""
        self.iommufd.close()


class NoiommuIommufdBackend(IommufdBackend):
    """An iommufd for devices that have no IOMMU: it pins memory and tells where it is.

    Devices use the physical address. What is mapped must be contiguous there, because there is one address for all of
    it.
    """

    def __init__(self, mode: IommuMode, files: SpaceFiles | None = None) -> None:
        super().__init__(mode, files)
        self._places: dict[int, tuple[Iova, int]] = {}

    def info(self) -> IommuInfo:
        """Give no ranges: there is nothing to choose from."""
        return IommuInfo(PAGE_SIZE, (), None)

    def start_dirty_log(self) -> HwptDirtyLog:
        """Refuse: nobody sees what devices write to.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(explain.no_dirty_log(self._mode.value))

    def map(self, iova: Iova | None, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> Iova:
        """Pin memory and give its physical address.

        Raises:
            IovaError: it is not contiguous, or mapped already.
            UnsupportedError: the kernel does not tell where it is (before 7.3).
        """
        return self._found(super().map(None, vaddr, size, read=read, write=write), size)

    def map_file(
        self, iova: Iova | None, fd: int, offset: int, size: int, *, read: bool = True, write: bool = True
    ) -> Iova:
        """Pin a part of a file and give its physical address. Raises as `map` does."""
        return self._found(super().map_file(None, fd, offset, size, read=read, write=write), size)

    def map_pieces(self, iova: Iova, scatter: Scatter, *, read: bool = True, write: bool = True) -> Mapped:
        """Refuse: pieces have no common address.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(explain.no_choice())

    def unmap_runs(self, runs: Runs) -> Results:
        """Unpin what has been mapped in each range."""
        return one_by_one(self.unmap, runs)

    def unmap(self, iova: int, size: int) -> int:
        """Unpin what `map` gave that address for."""
        place, length = self._places.get(iova, (None, 0))
        if place is None or length != size:
            raise VfioError(f"nothing of {size:#x} bytes is mapped at {iova:#x}")
        done = super().unmap(place, size)
        del self._places[iova]
        return done

    def unmap_all(self) -> int:
        """Unpin everything."""
        done = super().unmap_all()
        self._places.clear()
        return done

    def _found(self, place: Iova, size: int) -> Iova:
        try:
            physical, length = self.ioas.physical(place, size)
            if length < size:
                raise IovaError(
                    f"the memory is not contiguous: {length:#x} bytes of {size:#x} are at {physical:#x}, and without "
                    "an IOMMU a device needs all of it in one piece; alloc() gives such memory"
                )
            if self._places.setdefault(physical, (place, size))[0] != place:
                raise IovaError(f"the memory at {physical:#x} is mapped already; map it once")
        except BaseException:
            self.ioas.unmap(place, size)
            raise
        return Iova(physical)
