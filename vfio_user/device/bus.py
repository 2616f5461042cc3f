"""The outer device of a bus that adds nothing to the core's way of living: opened, reset alone, closed."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, Self, TypeVar

from vfio_user.device.base import VfioDevice
from vfio_user.device.irq import IrqIndex
from vfio_user.device.ops import DeviceOps
from vfio_user.device.region import Region
from vfio_user.device.reset import LOCK_TIMEOUT, ResetListener, reset_alone
from vfio_user.errors import UnsupportedError
from vfio_user.iommu import AddressSpace, DmaBuffer
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import Backing
from vfio_user.kernel.sysfs import SysfsDevice

__all__ = ["BusDevice"]


NodeT = TypeVar("NodeT", bound=SysfsDevice)


class BusDevice(Generic[NodeT]):
    """What the devices of the smaller buses share; each of them embeds the bus-neutral device as ``vdev``.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing.
    Locking:
        All methods may be called from any thread.
    """

    vdev: VfioDevice
    """The bus-neutral device; a subclass declares it as `Embedded`, so that ``container_of`` leads back."""

    def __init__(
        self, node: NodeT, fd: OwnedFd, space: AddressSpace, *, ops: DeviceOps, owns_space: bool = False
    ) -> None:
        """Take over an open device; the function of `vfio_user` that opens one of its kind is the usual way.

        Args:
            node: the device in sysfs.
            fd: the device's file, from `AddressSpace.attach`; closed on failure too.
            space: what it was attached to.
            ops: what is done with it: the ops table of its bus, or a variant of that.
            owns_space: close the address space with the device.
        """
        self.node = node
        """The device in sysfs."""
        self.address_space = space
        """What it reaches of memory."""
        self._owns_space = owns_space
        self.driver: ResetListener | None = None
        """The driver that drives it, told of resets; `None` while there is none."""
        self.vdev = VfioDevice(node.name, ops, fd, space)
        try:
            self.vdev.register()
        except BaseException:
            self.vdev.close()
            raise

    @property
    def name(self) -> str:
        """What its bus calls it."""
        return self.vdev.name

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self.vdev.closed

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions that it has, ordered by index."""
        return tuple(each for each in self.vdev.regions if each is not None)

    def region(self, index: int) -> Region:
        """Give a region by its index.

        Raises:
            BoundsError: it has no such region.
        """
        return self.vdev.region(index)

    def irq(self, index: int = 0) -> IrqIndex:
        """Give an interrupt kind by its index.

        A level interrupt masks itself when it is delivered (`IrqFlags.AUTOMASKED`): quiet the device, then
        `IrqIndex.unmask`. An edge interrupt can't be masked.

        Raises:
            UnsupportedError: it has no such interrupt.
        """
        if not 0 <= index < len(self.vdev.irqs):
            raise UnsupportedError(f"{self.name} has no interrupt {index}; it has {len(self.vdev.irqs)}")
        return self.vdev.irqs[index]

    def dma_alloc(
        self, size: int, *, iova_limit: int | None = None, backing: Backing | str = Backing.ANONYMOUS
    ) -> DmaBuffer:
        """Allocate memory that the device reaches; see `AddressSpace.alloc`."""
        return self.address_space.alloc(size, iova_limit=iova_limit, backing=backing)

    def reset(self, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        """Reset it: ``VFIO_DEVICE_RESET``; see `reset_alone`.

        Raises:
            UnsupportedError: the kernel has no way to reset it.
            MemoryLockBusyError: a reader did not leave in time; names device and thread. Nothing was reset.
            NotRestoredError: it was done, but the driver or a peer's mapping did not come back.
            VfioIoctlError: the kernel refused.
        """
        reset_alone(self.vdev, self.driver, lock_timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Give the device back; closing twice does nothing.

        Raises:
            DeadlineError: calls are still in it after ``timeout`` seconds; nothing is closed then.
            MemoryLockBusyError: a reader held the memory lock for as long; call again.
        """
        try:
            self.vdev.close(timeout)
        finally:
            if self.closed and self._owns_space:
                self.address_space.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.address_space.mode.value} {self.vdev.state.value}>"
