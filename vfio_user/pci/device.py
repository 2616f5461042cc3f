"""PCI devices."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import Protocol, Self

from vfio_user._uapi import lib
from vfio_user.addresses import PciAddress
from vfio_user.device.base import VfioDevice
from vfio_user.device.embed import Embedded
from vfio_user.device.info import RegionInfo, SparseArea
from vfio_user.device.irq import IrqIndex
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.device.region import Region
from vfio_user.errors import BoundsError, UnsupportedError
from vfio_user.iommu import AddressSpace, DmaBuffer
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import PAGE_SIZE, Backing
from vfio_user.pci.config import Command, ConfigSpace
from vfio_user.pci.msix import cut_hole, find_table

__all__ = ["PCI_OPS", "PciDevice", "PciIrqs", "ResetListener"]

_IRQ_LABELS = {
    lib.VFIO_PCI_INTX_IRQ_INDEX: "INTx",
    lib.VFIO_PCI_MSI_IRQ_INDEX: "MSI",
    lib.VFIO_PCI_MSIX_IRQ_INDEX: "MSI-X",
    lib.VFIO_PCI_ERR_IRQ_INDEX: "ERR",
    lib.VFIO_PCI_REQ_IRQ_INDEX: "REQ",
}


def _mappable_areas(vdev: VfioDevice, region: RegionInfo) -> tuple[SparseArea, ...]:
    """Leave out the pages of the MSI-X table where the kernel maps the rest only.

    Kernels that say nothing of ``VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`` refuse a mapping that touches the table.
    """
    areas = CORE_OPS.mappable_areas(vdev, region)
    if not areas or region.msix_mappable or region.sparse is not None:
        return areas
    table = find_table(vdev)
    if table is None or table.bar != region.index:
        return areas
    return cut_hole(areas, table.offset, table.size, PAGE_SIZE)


def _irq_label(vdev: VfioDevice, index: int) -> str:
    return _IRQ_LABELS.get(index) or CORE_OPS.irq_label(vdev, index)


PCI_OPS: DeviceOps = dataclasses.replace(
    CORE_OPS, name="vfio-pci", mappable_areas=_mappable_areas, irq_label=_irq_label
)
"""The ops table of PCI devices; a variant driver replaces single entries of it."""


class ResetListener(Protocol):
    """Who is told of a device's resets: its driver."""

    def reset_prepare(self) -> None:
        """Stop work: a reset is about to happen."""

    def reset_done(self) -> None:
        """Start again: the reset is over."""


class PciIrqs:
    """The interrupt kinds of a PCI device, by their names."""

    def __init__(self, vdev: VfioDevice) -> None:
        kinds = vdev.irqs
        if len(kinds) < lib.VFIO_PCI_NUM_IRQS:
            raise BoundsError(f"{vdev.name} has no interrupt index {len(kinds)}; PCI has {lib.VFIO_PCI_NUM_IRQS} kinds")
        self.intx: IrqIndex = kinds[lib.VFIO_PCI_INTX_IRQ_INDEX]
        """The legacy interrupt line: level, automasked."""
        self.msi: IrqIndex = kinds[lib.VFIO_PCI_MSI_IRQ_INDEX]
        """Message-signalled interrupts."""
        self.msix: IrqIndex = kinds[lib.VFIO_PCI_MSIX_IRQ_INDEX]
        """Message-signalled interrupts, extended: a table of vectors."""
        self.err: IrqIndex = kinds[lib.VFIO_PCI_ERR_IRQ_INDEX]
        """An uncorrectable error was reported (AER)."""
        self.req: IrqIndex = kinds[lib.VFIO_PCI_REQ_IRQ_INDEX]
        """The kernel asks for the device back: release it promptly, and touch no sysfs file of it."""


class PciDevice:
    """A PCI function opened through VFIO; `vfio_user.open` makes one.

    Opening changes nothing on the device: bus mastering stays off until `set_master`.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing. DMA buffers and the address space may be closed
        before or after.
    Locking:
        All methods may be called from any thread.
    """

    vdev = Embedded["PciDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, PciDevice.vdev)`` leads back."""

    def __init__(
        self,
        address: PciAddress,
        fd: OwnedFd,
        space: AddressSpace,
        *,
        ops: DeviceOps = PCI_OPS,
        owns_space: bool = False,
    ) -> None:
        """Take over an open device; `vfio_user.open` is the usual way.

        Args:
            address: where the function sits.
            fd: the device's file, from `AddressSpace.attach`; closed on failure too.
            space: what it was attached to.
            ops: what is done with it; `PCI_OPS` or a variant of it.
            owns_space: close the address space with the device.
        """
        self.address = address
        """Where it sits."""
        self.address_space = space
        """What it reaches of memory."""
        self._owns_space = owns_space
        self.driver: ResetListener | None = None
        """The driver that drives it, told of resets; `None` while there is none."""
        self.vdev = VfioDevice(str(address), ops, fd, space)
        try:
            vdev = self.vdev
            self.bars: tuple[Region | None, ...] = vdev.regions[: lib.VFIO_PCI_ROM_REGION_INDEX]
            """The six BARs; `None` where it has none, and for the upper half of a 64-bit one."""
            self.config = ConfigSpace(vdev.region(lib.VFIO_PCI_CONFIG_REGION_INDEX))
            """Its configuration space."""
            self.irqs = PciIrqs(vdev)
            """Its interrupts."""
            vdev.register()
        except BaseException:
            self.vdev.close()
            raise

    # -- what it is

    @property
    def name(self) -> str:
        """Its PCI address as sysfs spells it."""
        return self.vdev.name

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self.vdev.closed

    @property
    def rom(self) -> Region | None:
        """The expansion ROM; `None` when it has none."""
        return self._optional_region(lib.VFIO_PCI_ROM_REGION_INDEX)

    @property
    def vga(self) -> Region | None:
        """The legacy VGA ranges; `None` when the kernel does not offer them."""
        return self._optional_region(lib.VFIO_PCI_VGA_REGION_INDEX)

    def bar(self, number: int) -> Region:
        """Give a BAR.

        Raises:
            UnsupportedError: the device has no such BAR; the message lists those that it has.
        """
        region = self.bars[number] if 0 <= number < len(self.bars) else None
        if region is None:
            have = ", ".join(str(n) for n, each in enumerate(self.bars) if each is not None) or "none"
            raise UnsupportedError(f"{self.name} has no BAR {number}; it has: {have}")
        return region

    def _optional_region(self, index: int) -> Region | None:
        return self.vdev.regions[index] if index < len(self.vdev.regions) else None

    # -- what can be done with it

    def set_master(self, enable: bool) -> None:
        """Let the device start transactions, or stop it: DMA, MSI and MSI-X need it."""
        if enable:
            self.config.set_command(enable=Command.MASTER)
        else:
            self.config.set_command(disable=Command.MASTER)

    def dma_alloc(
        self, size: int, *, iova_limit: int | None = None, backing: Backing | str = Backing.ANONYMOUS
    ) -> DmaBuffer:
        """Allocate memory that the device reaches; see `AddressSpace.alloc`."""
        return self.address_space.alloc(size, iova_limit=iova_limit, backing=backing)

    def reset(self) -> None:
        """Reset this function alone: ``VFIO_DEVICE_RESET``.

        Its driver is told before and after. Interrupts that were enabled are armed again, on the same eventfds.

        Raises:
            UnsupportedError: the kernel has no way to reset it alone.
            VfioIoctlError: EAGAIN when the device is busy in the kernel; EINVAL, ENOTTY when the reset failed.
        """
        with self.vdev.user():
            if self.driver is not None:
                self.driver.reset_prepare()
            for irq in self.vdev.irqs:
                irq.quiesce()
            try:
                self.vdev.ops.reset(self.vdev)
            finally:
                for irq in self.vdev.irqs:
                    irq.rearm()
            if self.driver is not None:
                self.driver.reset_done()

    def close(self) -> None:
        """Give the device back; closing twice does nothing.

        Raises:
            DeadlineError: calls are still in it; nothing is closed then.
        """
        try:
            self.vdev.close()
        finally:
            if self._owns_space and self.closed:
                self.address_space.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PciDevice {self.name} {self.address_space.mode.value} {self.vdev.state.value}>"
