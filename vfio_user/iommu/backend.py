"""What an address space asks of a back end, and the back end made of a container and its groups."""

from __future__ import annotations

from typing import Protocol

from vfio_user.errors import ClosedError, UnsupportedError
from vfio_user.iommu import explain
from vfio_user.iommu.container import Container, IommuInfo
from vfio_user.iommu.group import Group
from vfio_user.iommu.modes import IommuMode
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import PciFunction

__all__ = ["ContainerBackend", "IommuBackend", "open_backend"]


class IommuBackend(Protocol):
    """The verbs of an IOMMU back end.

    Every method is called without a lock of ours held, except `attach` and `close`, which the address space calls under
    its attach lock.
    """

    @property
    def mode(self) -> IommuMode:
        """Which back end this is."""

    def attach(self, function: PciFunction, *, vf_token: str | None = None) -> OwnedFd:
        """Make the IOMMU translate for a device through these page tables, and open the device."""

    def info(self) -> IommuInfo:
        """Give the usable ranges and page sizes; needs an attached device."""

    def map(self, iova: int, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Map process memory at an IOVA."""

    def unmap(self, iova: int, size: int) -> int:
        """Unmap a range; give the number of bytes that were unmapped."""

    def unmap_all(self) -> int:
        """Unmap everything; give the number of bytes that were unmapped."""

    def close(self) -> None:
        """Close what `attach` opened besides the devices, then the back end itself."""


class ContainerBackend:
    """A VFIO container with the groups that were attached to it.

    Lifetime:
        Groups stay in the container until `close()`, also when their devices are closed before: the kernel forgets the
        IOMMU type and every mapping with the last group.
    Locking:
        The address space's attach lock covers `attach` and `close`.
    """

    def __init__(self, mode: IommuMode) -> None:
        self.container = Container(mode)
        self._groups: dict[int, Group] = {}

    @property
    def mode(self) -> IommuMode:
        """Which of the container modes this is."""
        return self.container.mode

    def attach(self, function: PciFunction, *, vf_token: str | None = None) -> OwnedFd:
        """Open the device's group, put it into the container if it is not there, and open the device.

        Raises:
            UnsupportedError: the device has no group, or is not bound to a VFIO driver.
            NotViableError: another device of the group is in the way.
            VfioOSError: a system call failed; the message says what to do.
        """
        number = function.iommu_group
        if number is None:
            raise UnsupportedError(explain.no_group(str(function.address)))
        group = self._groups.get(number)
        if group is not None:
            return group.open_device(str(function.address), vf_token=vf_token)
        group = Group(number, noiommu=self.mode is IommuMode.NOIOMMU)
        try:
            group.require_viable()
            group.set_container(self.container.fd)
            if not self._groups:
                self.container.set_iommu()
            device = group.open_device(str(function.address), vf_token=vf_token)
        except BaseException:
            group.close()
            raise
        self._groups[number] = group
        return device

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups in the container, in the order of their attachment."""
        return tuple(self._groups.values())

    def info(self) -> IommuInfo:
        """Ask the container; see `Container.info`."""
        if not self._groups:
            raise ClosedError("no device is attached to this address space, so there is no IOMMU to ask; open one")
        return self.container.info()

    def map(self, iova: int, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Map process memory; see `Container.map`."""
        self.container.map(iova, vaddr, size, read=read, write=write)

    def unmap(self, iova: int, size: int) -> int:
        """Unmap a range; see `Container.unmap`."""
        return self.container.unmap(iova, size)

    def unmap_all(self) -> int:
        """Unmap everything; see `Container.unmap_all`."""
        return self.container.unmap_all() if self._groups else 0

    def close(self) -> None:
        """Close the groups, then the container."""
        while self._groups:
            self._groups.popitem()[1].close()
        self.container.close()


def open_backend(mode: IommuMode) -> IommuBackend:
    """Open the back end of a mode.

    Raises:
        VfioOSError: its node is missing or not ours.
        UnsupportedError: the kernel lacks the mode.
    """
    return ContainerBackend(mode)
