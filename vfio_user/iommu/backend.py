"""What an address space asks of a back end, and the table of the back ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vfio_user.addresses import Iova
from vfio_user.iommu.bulk import Mapped, Results, Runs
from vfio_user.iommu.containers import ContainerBackend, NoiommuBackend
from vfio_user.iommu.dirty import DirtyLog
from vfio_user.iommu.files import SpaceFiles
from vfio_user.iommu.info import IommuInfo
from vfio_user.iommu.iommufd.backend import IommufdBackend, NoiommuIommufdBackend
from vfio_user.iommu.modes import IommuMode
from vfio_user.iommu.scatter import Scatter
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import VfioNode

__all__ = ["IommuBackend", "open_backend"]


class IommuBackend(Protocol):
    """The verbs of an IOMMU back end.

    Every method is called without a lock of ours held, except `attach`, `close` and `start_dirty_log`, which the
    address space calls under its attach lock.
    """

    @property
    def mode(self) -> IommuMode:
        """Which back end this is."""

    @property
    def files(self) -> SpaceFiles:
        """The open files that it is made of; it owns them."""

    @property
    def maps_files(self) -> bool:
        """Tell whether `map_file` maps files that have no address in this process."""

    @property
    def emptied(self) -> bool:
        """Tell whether the kernel has ended every mapping by itself; asked when it has refused to unmap."""

    def attach(self, node: VfioNode, *, vf_token: str | None = None) -> OwnedFd:
        """Make the IOMMU translate for a device through these page tables, and open the device.

        Closing the descriptor takes the device out again.
        """

    def info(self) -> IommuInfo:
        """Give the usable ranges and page sizes; needs an attached device."""

    def map(self, iova: Iova | None, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> Iova:
        """Map process memory, and give the address at which devices find it.

        That is ``iova``; where nothing is translated, ``iova`` is `None` and the address is the physical one.
        """

    def map_file(
        self, iova: Iova | None, fd: int, offset: int, size: int, *, read: bool = True, write: bool = True
    ) -> Iova:
        """Map a part of a file likewise."""

    def unmap(self, iova: int, size: int) -> int:
        """Unmap a range; give the number of bytes that were unmapped."""

    def unmap_all(self) -> int:
        """Unmap everything; give the number of bytes that were unmapped."""

    def map_pieces(self, iova: Iova, scatter: Scatter, *, read: bool = True, write: bool = True) -> Mapped:
        """Map pieces of process memory at one IOVA after the other; stop at the first that fails."""

    def unmap_runs(self, runs: Runs) -> Results:
        """Unmap ranges that each hold one or several whole mappings; all are tried."""

    def start_dirty_log(self) -> DirtyLog:
        """Begin to track what devices write to, which only one at a time does; give who tells."""

    def invalidate_vaddrs(self) -> int:
        """Forget where in this process all mapped memory is; give the number of bytes."""

    def update_vaddr(self, iova: int, size: int, vaddr: int) -> None:
        """Say where the memory of one mapping is now."""

    def close(self) -> None:
        """Close what `attach` opened besides the devices, then the back end itself."""


_BACKENDS: dict[IommuMode, Callable[[IommuMode, SpaceFiles | None], IommuBackend]] = {
    IommuMode.TYPE1: ContainerBackend,
    IommuMode.TYPE1V2: ContainerBackend,
    IommuMode.COMPAT_TYPE1: ContainerBackend,
    IommuMode.COMPAT_TYPE1V2: ContainerBackend,
    IommuMode.IOMMUFD: IommufdBackend,
    IommuMode.NOIOMMU: NoiommuBackend,
    IommuMode.NOIOMMU_IOMMUFD: NoiommuIommufdBackend,
}


def open_backend(mode: IommuMode, files: SpaceFiles | None = None) -> IommuBackend:
    """Open the back end of a mode, or make it of files that are open; those are its own then, also when it fails.

    Raises:
        VfioOSError: its node is missing or not ours.
        UnsupportedError: the kernel lacks the mode.
    """
    try:
        return _BACKENDS[mode](mode, files)
    except BaseException:
        for fd in files.files if files is not None else ():
            fd.close()
        raise
