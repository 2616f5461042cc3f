"""PCI devices."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from vfio_user._uapi import lib
from vfio_user.addresses import IovaRange, PciAddress
from vfio_user.device.base import VfioDevice
from vfio_user.device.embed import Embedded, container_of
from vfio_user.device.health import DeviceHealth
from vfio_user.device.info import RegionInfo, SparseArea
from vfio_user.device.irq import IrqIndex
from vfio_user.device.memory import locked
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.device.region import Region
from vfio_user.device.reset import LOCK_TIMEOUT, ResetListener
from vfio_user.errors import BoundsError, MemoryDisabledError, NotRestoredError, ResetFailedError, UnsupportedError
from vfio_user.iommu import AddressSpace, DmaBuffer
from vfio_user.iommu.token import vf_token
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import PAGE_SIZE, Backing
from vfio_user.kernel.sysfs import PciFunction
from vfio_user.kernel.uapi import AtomicCompletion, DeviceCapability, DeviceFeature, DeviceFlags
from vfio_user.memory import ZapReason
from vfio_user.pci import hot_reset_info
from vfio_user.pci.capabilities import Zpci, read_atomics, read_zpci
from vfio_user.pci.config import Command, ConfigSpace
from vfio_user.pci.devset import set_of
from vfio_user.pci.events import device_events
from vfio_user.pci.guard import ConfigGuard
from vfio_user.pci.low_power import LowPower
from vfio_user.pci.member import Member
from vfio_user.pci.msix import cut_hole, find_table
from vfio_user.pci.report import PhaseClock, ResetReport
from vfio_user.pci.reset import ResetTransaction
from vfio_user.pci.snapshot import ConfigSnapshot

__all__ = ["PCI_OPS", "PciDevice", "PciIrqs"]

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
    if any(each.identity == DeviceCapability.ZPCI_BASE for each in vdev.info.capabilities):
        return ()  # s390x has instructions of its own for PCI memory: a plain load there is an illegal instruction
    if not areas or region.msix_mappable or region.sparse is not None:
        return areas
    table = find_table(vdev)
    if table is None or table.bar != region.index:
        return areas
    return cut_hole(areas, table.offset, table.size, PAGE_SIZE)


def _write(vdev: VfioDevice, file_offset: int, data: bytes) -> None:
    def plain(file_offset: int, data: bytes) -> None:
        CORE_OPS.write(vdev, file_offset, data)

    container_of(vdev, PciDevice.vdev).guard.write(file_offset, data, plain)


def _reset_set(vdev: VfioDevice, group_fds: Sequence[int]) -> None:
    hot_reset_info.hot_reset(vdev.fileno(), group_fds, vdev.name)


def _irq_label(vdev: VfioDevice, index: int) -> str:
    return _IRQ_LABELS.get(index) or CORE_OPS.irq_label(vdev, index)


PCI_OPS: DeviceOps = dataclasses.replace(
    CORE_OPS,
    name="vfio-pci",
    mappable_areas=_mappable_areas,
    irq_label=_irq_label,
    write=_write,
    reset_set=_reset_set,
)
"""The ops table of PCI devices; a variant driver replaces single entries of it."""


class PciIrqs:
    """The interrupt kinds of a PCI device, by their names.

    Lifetime:
        Lives as long as its device.
    Locking:
        Fixed when it is made; each `IrqIndex` has a lock of its own.
    """

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

    @property
    def delivered(self) -> tuple[IrqIndex, ...]:
        """The kinds that the device itself sends; ERR and REQ come from the kernel, and survive resets."""
        return (self.intx, self.msi, self.msix)


class PciDevice:
    """A PCI function opened through VFIO; `vfio_user.open` makes one.

    Opening changes nothing on the device: bus mastering stays off until `set_master`.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing. DMA buffers and the address space may be closed
        before or after.
    Locking:
        All methods may be called from any thread. Opening, closing and resetting take the lock of `device_set`.
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
            space_info = vdev.region(lib.VFIO_PCI_CONFIG_REGION_INDEX)
            self.guard = ConfigGuard(self, space_info.info.file_offset, space_info.size)
            """Watches over writes to its configuration space."""
            self.config = ConfigSpace(space_info, self.guard.alone)
            """Its configuration space."""
            self.irqs = PciIrqs(vdev)
            """Its interrupts."""
            self.low_power = LowPower(self)
            """Lets the kernel put it to sleep while nobody uses it."""
            self.resets = 0
            """How often it was reset by this process."""
            self.events = device_events(self)
            """What happens to it from outside: requests to give it back, errors, wake-ups."""
            vdev.on_gone(self.events._note_gone)
            self._before_reset: ConfigSnapshot | None = None  # what a reset that failed leaves for the next one
            zpci = self.zpci
            if zpci is not None:
                # iommufd names all that the tables can hold, but a mapping beyond the window (EIO) stops the function.
                space.confine(IovaRange(zpci.start_dma, zpci.end_dma))
            self.device_set = set_of(PciFunction(address), fd.fileno())
            """The devices that are hot-reset with it, as far as they are open here."""
            self.device_set.join(vdev, vdev.register)
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

    @property
    def atomics(self) -> AtomicCompletion:
        """Widths of PCIe atomic operations that the root port above it completes (``PCI_ATOMIC_COMP``)."""
        return read_atomics(self.vdev.info.capabilities)

    @property
    def zpci(self) -> Zpci | None:
        """What an s390 tells of it (``ZPCI_*``); `None` on other machines."""
        return read_zpci(self.vdev.info.capabilities)

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

    def set_vf_token(self, token: str | uuid.UUID) -> None:
        """Set what users of the virtual functions must know, for a physical function: ``PCI_VF_TOKEN``.

        Whoever opens one from now on passes it as ``open(address, vf_token=token)``; those that are open stay open. The
        token outlives this opening: until the next one is set, it lets those in who know it.

        Args:
            token: a UUID, such as ``uuid.uuid4()``; a secret.

        Raises:
            ArgumentError: it is not a UUID.
            UnsupportedError: the device is no physical function (ENOTTY).
        """
        self.vdev.features.set(DeviceFeature.PCI_VF_TOKEN, payload=vf_token(token).bytes)

    def dma_alloc(
        self, size: int, *, iova_limit: int | None = None, backing: Backing | str = Backing.ANONYMOUS
    ) -> DmaBuffer:
        """Allocate memory that the device reaches; see `AddressSpace.alloc`."""
        return self.address_space.alloc(size, iova_limit=iova_limit, backing=backing)

    def reset(self, *, lock_timeout: float = LOCK_TIMEOUT) -> ResetReport:
        """Reset this function alone: ``VFIO_DEVICE_RESET``; see `vfio_user.pci.reset.ResetTransaction`.

        Args:
            lock_timeout: seconds for the set's lock and the memory lock together.

        Raises:
            UnsupportedError: the kernel has no way to reset it alone.
            MemoryLockBusyError: a reader did not leave in time; names device and thread. Nothing was reset.
            BusyError: another reset is under way, or the kernel stayed busy. Nothing was reset.
            ResetFailedError: it failed; the device stays switched off until another reset succeeds.
            DeviceGoneError: the device does not answer any more.
            NotRestoredError: it was done, but the driver, a peer's mapping or an interrupt did not come back.
            LockOrderError: this thread is inside of a read section.
        """
        ops = self.vdev.ops
        if ops.reset is CORE_OPS.reset and not self.vdev.info.flags & DeviceFlags.RESET:
            ops.reset(self.vdev)  # refuses by name, before the driver is told
        return self._reset_by("function reset", lambda: ops.reset(self.vdev), lock_timeout)

    def revive(self, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        """Find out why the memory is away, and bring it back if that is possible.

        For a device whose memory the kernel refused (``vdev.health`` is `DeviceHealth.REFUSED`), and after something
        else than this process has switched its memory on again.

        Raises:
            DeviceGoneError: it does not answer any more.
            MemoryDisabledError: memory decoding is off, or it is in D3.
            ResetFailedError: it needs a reset.
            NotRestoredError: the memory is back, but not for all of its peers.
            MemoryLockBusyError: a reader did not leave in time.
        """
        memory = self.vdev.memory
        with self.vdev.user() as fd, self.guard.alone(lock_timeout), locked((memory,), lock_timeout):
            gone = Member(self).find_gone()
            if gone is not None:
                self.vdev.judge(DeviceHealth.GONE)
                memory.take_away(ZapReason.GONE)
                raise gone
            if self.vdev.health is DeviceHealth.NEEDS_RESET:
                raise ResetFailedError(f"the last reset of {self.name} failed: reset it again", [self.name])
            if not self.guard.memory_on():
                memory.take_away(ZapReason.DISABLED)
                raise MemoryDisabledError(
                    f"{self.name} does not answer in memory space: set Command.MEMORY, leave D3 or low power, and its "
                    "memory comes back"
                )
            self.vdev.judge(None)
            failures = memory.give_back(fd)
        if failures:
            raise NotRestoredError(f"the memory of {self.name} is back, but not for all of its peers", failures)

    def close(self, timeout: float = 10.0) -> None:
        """Give the device back; closing twice does nothing.

        Raises:
            DeadlineError: calls are still in it after ``timeout`` seconds; nothing is closed then.
            BusyError: it was being reset, or a reader held the memory lock, for as long; call again.
        """
        vdev = self.vdev
        try:
            if vdev.forked:
                vdev.close(timeout)  # whoever had the set's lock is in the parent
            elif not vdev.closed:
                self.device_set.leave(vdev, lambda: vdev.close(timeout), timeout)
        finally:
            if self.closed:
                self.low_power._end()
                self.events._end()
                if self._owns_space:
                    self.address_space.close()

    def _reset_by(self, kind: str, act: Callable[[], None], lock_timeout: float) -> ResetReport:
        clock, deadline = PhaseClock(), time.monotonic() + lock_timeout
        with ExitStack() as stack:
            with clock.phase("lock of the set"):
                stack.enter_context(self.device_set.locked(lock_timeout))
            return ResetTransaction(kind, [self], act, clock, deadline).run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PciDevice {self.name} {self.address_space.mode.value} {self.vdev.state.value}>"
