"""The open files that an address space is made of, so that they can go to another process."""

from __future__ import annotations

from dataclasses import dataclass

from vfio_user.iommu.modes import IommuMode
from vfio_user.kernel.fd import OwnedFd

__all__ = ["SpaceFiles"]


@dataclass(frozen=True, slots=True)
class SpaceFiles:
    """What an address space is made of.

    Lifetime:
        Whoever has it owns the files; an address space that takes it over (`AddressSpace.take_over`) does then.
    Locking:
        None; immutable.
    """

    mode: IommuMode
    """How they talk to the IOMMU."""
    control: OwnedFd
    """The container, or the iommufd."""
    groups: tuple[tuple[int, OwnedFd], ...] = ()
    """The groups in the container, with their numbers."""
    ioas: int = 0
    """Number of the address space in the iommufd; 0 for a container."""

    @property
    def files(self) -> tuple[OwnedFd, ...]:
        """All of them: first the container or iommufd, then the groups."""
        return (self.control, *(fd for _, fd in self.groups))
