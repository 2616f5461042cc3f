"""The back ends that are made of a VFIO container and its groups."""

from __future__ import annotations

import threading

from vfio_user.addresses import Iova
from vfio_user.errors import ClosedError, IovaError, UnsupportedError, VfioError
from vfio_user.iommu import explain, pagemap
from vfio_user.iommu.bulk import Mapped, Results, Runs, map_in_container, one_by_one, unmap_in_container
from vfio_user.iommu.container import Container
from vfio_user.iommu.files import SpaceFiles
from vfio_user.iommu.group import Group
from vfio_user.iommu.info import IommuInfo
from vfio_user.iommu.iommufd.fd import Iommufd
from vfio_user.iommu.modes import IommuMode
from vfio_user.iommu.scatter import Scatter
from vfio_user.iommu.type1 import ContainerDirtyLog, invalidate_vaddrs, update_vaddr
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import PAGE_SIZE
from vfio_user.kernel.sysfs import VfioNode

__all__ = ["ContainerBackend", "NoiommuBackend"]


class ContainerBackend:
    """A VFIO container with the groups that were attached to it.

    Lifetime:
        Groups stay in the container until `close()`, also when their devices are closed before: the kernel forgets the
        IOMMU type and every mapping with the last group.
    Locking:
        A lock of its own serialises what becomes of groups. Devices are opened outside of it: the kernel may reset them
        then, which takes a tenth of a second, for several at the same time.
    """

    def __init__(self, mode: IommuMode, files: SpaceFiles | None = None) -> None:
        self.container = Container(mode, files.control if files is not None else None)
        self._lock = threading.Lock()
        self._groups: dict[int, Group] = {}
        self._wanted: dict[int, int] = {}  # devices of each group that were opened, or are being opened
        for number, fd in files.groups if files is not None else ():
            self._groups[number] = Group(number, noiommu=mode is IommuMode.NOIOMMU, fd=fd)
            self._wanted[number] = 1

    @property
    def mode(self) -> IommuMode:
        """Which of the container modes this is."""
        return self.container.mode

    @property
    def maps_files(self) -> bool:
        """Tell whether this is iommufd's stand-in for a container."""
        return self.mode in (IommuMode.COMPAT_TYPE1, IommuMode.COMPAT_TYPE1V2)

    def attach(self, node: VfioNode, *, vf_token: str | None = None) -> OwnedFd:
        """Open the device's group, put it into the container if it is not there, and open the device.

        Raises:
            UnsupportedError: the device has no group, or is not bound to a VFIO driver.
            NotViableError: another device of the group is in the way.
            VfioOSError: a system call failed; the message says what to do.
        """
        number = node.iommu_group
        if number is None:
            raise UnsupportedError(explain.no_group(node.name))
        group = self._join(number)
        try:
            node.introduce(group.fd.fileno())
            return group.open_device(node.name, vf_token=vf_token)
        except BaseException:
            self._leave(group)
            raise

    def _join(self, number: int) -> Group:
        """Give a group that is in the container, for one more device."""
        with self._lock:
            group = self._groups.get(number)
            if group is None:
                group = Group(number, noiommu=self.mode is IommuMode.NOIOMMU)
                try:
                    group.require_viable()
                    group.set_container(self.container.fd)
                    if not self._groups:
                        self.container.set_iommu()
                except BaseException:
                    group.close()
                    raise
                self._groups[number] = group
            self._wanted[number] = self._wanted.get(number, 0) + 1
            return group

    def _leave(self, group: Group) -> None:
        """Take a group out that is there for a device only that could not be opened."""
        with self._lock:
            self._wanted[group.number] -= 1
            if not self._wanted[group.number]:
                del self._groups[group.number]
                group.close()

    @property
    def emptied(self) -> bool:
        """Tell whether no group is in the container any more.

        The kernel takes a group out when its last device is unplugged, and with the last group all mappings end.

        Source: ``vfio_device_remove_group()`` of ``drivers/vfio/group.c``.
        """
        return not any(group.in_container for group in self._groups.values())

    @property
    def files(self) -> SpaceFiles:
        """What it is made of."""
        groups = tuple((number, group.fd) for number, group in self._groups.items())
        return SpaceFiles(self.mode, self.container.fd, groups)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups in the container, in the order of their attachment."""
        return tuple(self._groups.values())

    def info(self) -> IommuInfo:
        """Ask the container; see `Container.info`."""
        if not self._groups:
            raise ClosedError("no device is attached to this address space, so there is no IOMMU to ask; open one")
        return self.container.info()

    def map(self, iova: Iova | None, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> Iova:
        """Map process memory; see `Container.map`."""
        assert iova is not None, "a container has no IOVAs of its own to choose from"
        self.container.map(iova, vaddr, size, read=read, write=write)
        return iova

    def map_file(
        self, iova: Iova | None, fd: int, offset: int, size: int, *, read: bool = True, write: bool = True
    ) -> Iova:
        """Map a part of a file; the stand-in for a container can, by the address space behind it; see `Ioas.map_file`.

        Raises:
            UnsupportedError: this is a real container, which maps what has an address in this process.
        """
        ioas = Iommufd(self.container.fd).vfio_ioas if self.maps_files else None
        if ioas is None:
            raise UnsupportedError(f"mode {self.mode.value} maps memory by its address in this process")
        return ioas.map_file(fd, offset, size, iova, read=read, write=write)

    def unmap(self, iova: int, size: int) -> int:
        """Unmap a range; see `Container.unmap`."""
        return self.container.unmap(iova, size)

    def unmap_all(self) -> int:
        """Unmap everything; see `Container.unmap_all`."""
        return self.container.unmap_all() if self._groups else 0

    def map_pieces(self, iova: Iova, scatter: Scatter, *, read: bool = True, write: bool = True) -> Mapped:
        """Map pieces of memory one after the other; see `bulk.map_in_container`."""

        def again(place: int, vaddr: int, size: int) -> None:
            self.container.map(place, vaddr, size, read=read, write=write)

        return map_in_container(self.container.fd, iova, scatter, again, read=read, write=write)

    def unmap_runs(self, runs: Runs) -> Results:
        """Unmap ranges; see `bulk.unmap_in_container`."""
        return unmap_in_container(self.container.fd, runs)

    def start_dirty_log(self) -> ContainerDirtyLog:
        """Start the container's log; see `ContainerDirtyLog`."""
        return ContainerDirtyLog(self.container)

    def invalidate_vaddrs(self) -> int:
        """Make the kernel forget where mapped memory is; see `type1.invalidate_vaddrs`."""
        return invalidate_vaddrs(self.container)

    def update_vaddr(self, iova: int, size: int, vaddr: int) -> None:
        """Say where it is now; see `type1.update_vaddr`."""
        update_vaddr(self.container, iova, size, vaddr)

    def close(self) -> None:
        """Close the groups, then the container."""
        while self._groups:
            self._groups.popitem()[1].close()
        self.container.close()


class NoiommuBackend(ContainerBackend):
    """A container with groups that have no IOMMU: memory is locked, and devices use its physical address.

    What is mapped must be contiguous there, because there is one address for all of it.
    """

    def __init__(self, mode: IommuMode, files: SpaceFiles | None = None) -> None:
        super().__init__(mode, files)
        self._lock = threading.Lock()
        self._places: dict[int, tuple[int, int]] = {}

    def info(self) -> IommuInfo:
        """Give no ranges: there is nothing to choose from."""
        return IommuInfo(PAGE_SIZE, (), None)

    def start_dirty_log(self) -> ContainerDirtyLog:
        """Refuse: nobody sees what devices write to.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(explain.no_dirty_log(self.mode.value))

    def map(self, iova: Iova | None, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> Iova:
        """Lock memory and give its physical address. Raises as `pagemap.lock_and_find` does."""
        with self._lock:  # locks of one page do not count: two mappings of it would be unlocked by the first unmap
            if any(vaddr < start + length and start < vaddr + size for start, length in self._places.values()):
                raise IovaError(f"the memory at {vaddr:#x} is mapped already; map it once")
            physical = pagemap.lock_and_find(vaddr, size)
            self._places[physical] = (vaddr, size)
            return Iova(physical)

    def map_pieces(self, iova: Iova, scatter: Scatter, *, read: bool = True, write: bool = True) -> Mapped:
        """Refuse: pieces have no common address.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(explain.no_choice())

    def unmap_runs(self, runs: Runs) -> Results:
        """Unlock what has been mapped in each range."""
        return one_by_one(self.unmap, runs)

    def unmap(self, iova: int, size: int) -> int:
        """Unlock what `map` gave that address for."""
        with self._lock:
            vaddr, length = self._places.get(iova, (0, 0))
            if length != size:
                raise VfioError(f"nothing of {size:#x} bytes is mapped at {iova:#x}")
            pagemap.unlock(vaddr, length)
            del self._places[iova]
            return length

    def unmap_all(self) -> int:
        """Unlock everything."""
        with self._lock:
            for vaddr, length in self._places.values():
                pagemap.unlock(vaddr, length)
            total = sum(length for _, length in self._places.values())
            self._places.clear()
            return total
