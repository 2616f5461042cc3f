"""The life of a virtio device on PCI: probe, removal, resets (virtio 1.2, 3). What it is for is up to subclasses."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from vfio_user.drivers.resettable import ResettableDriver
from vfio_user.drivers.virtio.errors import VirtioNeedsResetError, VirtioNotRunningError, VirtioUnsupportedError
from vfio_user.drivers.virtio.features import DeviceStatus, Feature
from vfio_user.drivers.virtio.layout import QueueLayout
from vfio_user.drivers.virtio.queue import SplitQueue
from vfio_user.drivers.virtio.registers import CommonRegisters
from vfio_user.drivers.virtio.service import QueueService
from vfio_user.drivers.virtio.transport import NO_VECTOR, PciTransport, find_common
from vfio_user.iommu import IommuMode

if TYPE_CHECKING:
    from typing import Any

    from vfio_user.device.regmap import RegisterMap
    from vfio_user.device.vector import IrqVector
    from vfio_user.pci.config import ConfigSpace
    from vfio_user.pci.device import PciDevice

__all__ = ["VirtioDevice"]

T = TypeVar("T")

_TRANSPORT_FEATURES = (
    Feature.VERSION_1 | Feature.ACCESS_PLATFORM | Feature.ORDER_PLATFORM | Feature.INDIRECT_DESC | Feature.EVENT_IDX
)


class VirtioDevice(ResettableDriver):
    """Brings a virtio device up, resets it and quiets it.

    A subclass says which features it knows (`_features`), makes its queues with `_add_queue` in `_setup`, and may fill
    them in `_fill`.

    Lifetime:
        See `Driver`. Probing resets the device, turns bus mastering and MSI-X on; removing resets it, and turns both
        off.
    Locking:
        See `ResettableDriver`.
    """

    _not_running = VirtioNotRunningError

    register_maps = (CommonRegisters,)

    transport: PciTransport
    """The device's registers."""
    features: int
    """The features that are in use."""
    config_vector: IrqVector | None
    """The interrupt that tells of changes of the configuration; `None` when polling."""

    @classmethod
    def find_registers(cls, config: ConfigSpace) -> Iterator[tuple[type[RegisterMap], int, int]]:
        """Give the common configuration, where its capability says."""
        common = find_common(config)
        if common is not None:
            yield CommonRegisters, common.bar, common.offset

    def __init__(
        self, pci: PciDevice, *, interrupts: bool = True, queue_size: int = 256, timeout: float = 30.0
    ) -> None:
        """Take a device; nothing is touched before `start`, or the ``with`` block.

        Args:
            pci: the device.
            interrupts: an MSI-X vector for each queue and one for the configuration; without, waiting polls.
            queue_size: most descriptors of each queue, a power of two; less where the device has less.
            timeout: default deadline of what is waited for, seconds.

        Raises:
            UnsupportedError: it is another kind of device.
            BoundsError: no queue can have that size.
        """
        super().__init__(pci, timeout=timeout)
        QueueLayout(queue_size)
        self._interrupts = interrupts
        self._queue_size = queue_size
        self._services: list[QueueService[Any]] = []

    # -- for subclasses

    @abc.abstractmethod
    def _features(self) -> int:
        """Tell the features of its kind that it knows."""

    @abc.abstractmethod
    def _num_queues(self) -> int:
        """Tell how many queues it uses, from 0 on."""

    @abc.abstractmethod
    def _setup(self, stack: contextlib.ExitStack, vectors: Sequence[IrqVector | None]) -> None:
        """Read the configuration, allocate, and add the queues; ``stack`` gives back."""

    def _fill(self) -> None:
        """Put the first buffers into the queues: the device runs (again)."""

    def _add_queue(
        self,
        stack: contextlib.ExitStack,
        vector: IrqVector | None,
        used: Callable[[list[tuple[T, int]]], object],
        ended: Callable[[list[T]], object],
        *,
        name: str,
        table_entries: int = 0,
    ) -> QueueService[T]:
        """Allocate the next queue; see `QueueService`.

        Chains of up to ``table_entries`` segments go through indirect tables, where the device knows them.
        """
        index = len(self._services)
        most = self.transport.max_queue_size(index)
        if not most:
            raise VirtioUnsupportedError(f"{self.name} has no queue {index}")
        size = min(self._queue_size, 1 << most.bit_length() - 1)
        tables = min(table_entries, size) if self.features & Feature.INDIRECT_DESC else 0
        memory = stack.enter_context(self.pci.dma_alloc(QueueLayout(size, tables).num_bytes))
        queue: SplitQueue[T] = SplitQueue(
            size,
            memory,
            notify=self.transport.notifier(index),
            event_index=bool(self.features & Feature.EVENT_IDX),
            table_entries=tables,
            name=f"{self.name} {name} queue",
        )
        service = QueueService(
            queue, vector, used=used, ended=ended, require_running=self._require_running, diagnose=self._diagnose
        )
        self._services.append(service)
        return service

    # -- for ResettableDriver

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        self.transport = PciTransport(self.pci)
        vectors: Sequence[IrqVector | None] = (None,) * (1 + self._num_queues())
        if self._interrupts:
            vectors = self.pci.irqs.msix.enable(1 + self._num_queues())
            stack.callback(self.pci.irqs.msix.disable)
        self.config_vector = vectors[0]
        self._services = []
        memory = stack.enter_context(contextlib.ExitStack())
        stack.callback(self._stop_for_good)
        self._agree()  # what there is to allocate depends on the features
        self._setup(memory, vectors[1:])

    def _switch_on(self) -> None:
        self._agree()
        transport = self.transport
        transport.set_config_vector(0 if self._interrupts else NO_VECTOR)
        for index, service in enumerate(self._services):
            transport.enable_queue(index, service.queue, 1 + index if self._interrupts else NO_VECTOR)
        transport.set_status(DeviceStatus.DRIVER_OK)
        self._fill()

    def _quiesce(self) -> None:
        self.transport.reset()

    def _forget(self) -> None:
        for service in self._services:
            service.halt()

    # -- inside

    def _agree(self) -> None:
        """Reset the device, say hello, agree on features: steps 1 to 6 of 3.1.1."""
        transport = self.transport
        transport.reset()
        transport.set_status(DeviceStatus.ACKNOWLEDGE)
        transport.set_status(DeviceStatus.DRIVER)
        needed = Feature.VERSION_1
        if self.pci.address_space.mode is not IommuMode.NOIOMMU:
            needed |= Feature.ACCESS_PLATFORM
        self.features = transport.negotiate(_TRANSPORT_FEATURES | self._features(), needed)

    def _diagnose(self) -> None:
        """Raise if the device can't answer any more."""
        if self.transport.status & DeviceStatus.NEEDS_RESET:
            raise VirtioNeedsResetError(f"{self.name} says that it needs a reset: reset() it")
