"""Virtio over PCI, modern (virtio 1.2, 4.1): where the structures are, and what is done with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.drivers.virtio.errors import VirtioDeadlineError, VirtioError, VirtioUnsupportedError
from vfio_user.drivers.virtio.features import DeviceStatus, Feature
from vfio_user.drivers.virtio.registers import CommonRegisters
from vfio_user.errors import BoundsError, DeviceGoneError, MalformedReplyError
from vfio_user.pci.config import CapabilityId

if TYPE_CHECKING:
    from vfio_user.drivers.virtio.queue import SplitQueue
    from vfio_user.pci.config import ConfigSpace
    from vfio_user.pci.device import PciDevice

__all__ = ["NO_VECTOR", "PciTransport", "Structure", "find_common", "find_structures", "walk"]

# Types of structures (4.1.4).
_COMMON, _NOTIFY, _ISR, _DEVICE = 1, 2, 3, 4
_CAPABILITY_SIZE = 16
_COMMON_SIZE = 0x38

NO_VECTOR = 0xFFFF
"""No interrupt: VIRTIO_MSI_NO_VECTOR (4.1.5.1.2)."""
_GONE = 0xFF
_RESET_TIMEOUT = 5.0
_CONFIG_TRIES = 100


@dataclass(frozen=True, slots=True)
class Structure:
    """One of the structures that the device has in its BARs."""

    bar: int
    """Number of the BAR."""
    offset: int
    """Where it begins in the BAR."""
    size: int
    """Bytes."""
    multiplier: int = 0
    """For notifications: bytes between those of two queues."""


def walk(config: ConfigSpace, name: str) -> Iterator[tuple[int, Structure]]:
    """Walk the vendor capabilities: type and place of each structure, as the device says it (4.1.4).

    Raises:
        MalformedReplyError: a capability is too short.
    """
    for capability in config.capabilities():
        if capability.identity != CapabilityId.VENDOR:
            continue
        at = capability.offset
        size, kind, bar = config.read8(at + 2), config.read8(at + 3), config.read8(at + 4)
        if kind not in (_COMMON, _NOTIFY, _ISR, _DEVICE) or bar > 5:
            continue  # others are reserved, to be ignored
        if size < _CAPABILITY_SIZE + (4 if kind == _NOTIFY else 0):
            raise MalformedReplyError(f"{name}: the virtio capability at {at:#x} has {size} bytes")
        multiplier = config.read32(at + 16) if kind == _NOTIFY else 0
        yield kind, Structure(bar, config.read32(at + 8), config.read32(at + 12), multiplier)


def find_common(config: ConfigSpace) -> Structure | None:
    """Give the place of the common configuration; `None` for a legacy device."""
    return next((structure for kind, structure in walk(config, "virtio") if kind == _COMMON), None)


def find_structures(pci: PciDevice) -> dict[int, Structure]:
    """Give the first structure of each type.

    Raises:
        MalformedReplyError: a capability is too short, or names a place outside of its BAR.
    """
    found: dict[int, Structure] = {}
    for kind, structure in walk(pci.config, pci.name):
        if kind in found:
            continue
        region = pci.bars[structure.bar]
        if region is None or structure.offset + structure.size > region.size:
            raise MalformedReplyError(
                f"{pci.name}: virtio structure {kind} is at {structure.offset:#x} of BAR {structure.bar}, "
                f"{structure.size:#x} bytes: outside of it"
            )
        found[kind] = structure
    return found


class PciTransport:
    """The registers of a virtio device on PCI, and the sequences that the specification asks for.

    Lifetime:
        As long as the device.
    Locking:
        Notifications may come from any thread; the caller serialises the rest.
    """

    def __init__(self, pci: PciDevice) -> None:
        """Find the structures; nothing is written.

        Raises:
            VirtioUnsupportedError: it has none: a legacy device.
            MalformedReplyError: they are not where they can be.
        """
        self.name = f"virtio {pci.name}"
        """Name of the device, for messages."""
        structures = find_structures(pci)
        missing = [name for name, kind in (("common", _COMMON), ("notify", _NOTIFY)) if kind not in structures]
        if missing:
            raise VirtioUnsupportedError(
                f"{self.name} has no {' and no '.join(missing)} structure: it is a legacy device; QEMU makes a modern "
                "one by disable-legacy=on"
            )
        common = structures[_COMMON]
        if common.size < _COMMON_SIZE:
            raise MalformedReplyError(f"{self.name}: its common structure has {common.size:#x} bytes")
        self._common = CommonRegisters(pci.bar(common.bar), common.offset)
        self._notify = structures[_NOTIFY]
        self._notify_bar = pci.bar(self._notify.bar)
        self._config = structures.get(_DEVICE)
        self._config_bar = None if self._config is None else pci.bar(self._config.bar)

    # -- status (2.1)

    @property
    def status(self) -> DeviceStatus:
        """The device's status.

        Raises:
            DeviceGoneError: it reads as all-ones.
        """
        value = self._common.device_status.read()
        if value == _GONE:
            raise DeviceGoneError(
                f"{self.name} reads as all-ones: it was unplugged, lost power, or its memory decoding is off"
            )
        return DeviceStatus(value)

    def set_status(self, *bits: DeviceStatus) -> None:
        """Set bits of the status."""
        value = self.status
        for bit in bits:
            value |= bit
        self._common.device_status.write(value)

    def reset(self) -> None:
        """Reset the device (2.4, 4.1.4.3.1): no DMA, no interrupts, no queues afterwards.

        Raises:
            VirtioDeadlineError: it does not say that it is done.
            DeviceGoneError: it reads as all-ones.
        """
        self._common.device_status.write(0)
        deadline = time.monotonic() + _RESET_TIMEOUT
        while self.status:
            if time.monotonic() >= deadline:
                raise VirtioDeadlineError(f"{self.name} did not reset itself within {_RESET_TIMEOUT:g} s")
            time.sleep(0.001)

    # -- features (2.2)

    def device_features(self) -> int:
        """Read what the device offers, 64 bits."""
        features = 0
        for half in range(2):
            self._common.device_feature_select.write(half)
            features |= self._common.device_feature.read() << 32 * half
        return features

    def negotiate(self, wanted: int, needed: int) -> int:
        """Agree on features (3.1.1, steps 4 to 6); give those that are in use.

        Args:
            wanted: those that the driver knows how to use.
            needed: those that it can't do without.

        Raises:
            VirtioUnsupportedError: the device lacks one that is needed, or refuses the choice.
        """
        offered = self.device_features()
        lacking = needed & ~offered
        if lacking:
            names = ", ".join(f.name or hex(f) for f in Feature if f & lacking) or hex(lacking)
            hint = (
                ": it would bypass the IOMMU; QEMU needs iommu_platform=on" if lacking & Feature.ACCESS_PLATFORM else ""
            )
            raise VirtioUnsupportedError(f"{self.name} lacks {names}{hint}")
        features = offered & (wanted | needed)
        for half in range(2):
            self._common.driver_feature_select.write(half)
            self._common.driver_feature.write(features >> 32 * half & 0xFFFF_FFFF)
        self.set_status(DeviceStatus.FEATURES_OK)
        if not self.status & DeviceStatus.FEATURES_OK:
            raise VirtioUnsupportedError(f"{self.name} refuses the features {features:#x}; it offered {offered:#x}")
        return features

    # -- queues (4.1.5.1.3)

    @property
    def num_queues(self) -> int:
        """How many queues it can have."""
        return self._common.num_queues.read()

    def max_queue_size(self, index: int) -> int:
        """Tell the most descriptors of a queue; 0 when there is no such queue."""
        self._common.queue_select.write(index)
        return self._common.queue_size.read()

    def notifier(self, index: int) -> Callable[[], None]:
        """Give what notifies the device of buffers in a queue (4.1.5.2).

        Raises:
            MalformedReplyError: its place is outside of the structure.
        """
        self._common.queue_select.write(index)
        place = self._common.queue_notify_off.read() * self._notify.multiplier
        if place + 2 > self._notify.size:
            raise MalformedReplyError(f"{self.name}: queue {index} is notified at {place:#x}, outside of the structure")
        write, offset = self._notify_bar.write16, self._notify.offset + place

        def notify() -> None:
            write(offset, index)

        return notify

    def enable_queue(self, index: int, queue: SplitQueue[object], vector: int = NO_VECTOR) -> None:
        """Tell the device of a queue, and switch it on.

        Raises:
            VirtioError: the device has no room for the vector.
        """
        common = self._common
        common.queue_select.write(index)
        common.queue_size.write(queue.size)
        common.queue_vector.write(vector)
        if common.queue_vector.read() != vector:
            raise VirtioError(f"{self.name} has no resources for vector {vector} of queue {index}")
        # As halves: 64-bit fields need not take 64-bit accesses (4.1.3.1).
        for low, high, iova in (
            (common.queue_desc_low, common.queue_desc_high, queue.descriptors_iova),
            (common.queue_driver_low, common.queue_driver_high, queue.available_iova),
            (common.queue_device_low, common.queue_device_high, queue.used_iova),
        ):
            low.write(iova & 0xFFFF_FFFF)
            high.write(iova >> 32)
        common.queue_enable.write(1)

    # -- configuration

    def set_config_vector(self, vector: int = NO_VECTOR) -> None:
        """Say which vector tells of changes of the configuration.

        Raises:
            VirtioError: the device has no room for the vector.
        """
        self._common.config_vector.write(vector)
        if self._common.config_vector.read() != vector:
            raise VirtioError(f"{self.name} has no resources for vector {vector}")

    def read_config(self, offset: int, width: int) -> int:
        """Read a field of the device's own configuration: 1, 2, 4 or 8 bytes; it does not change meanwhile (2.5).

        Raises:
            BoundsError: the structure is not so large.
            VirtioDeadlineError: it keeps changing.
        """
        if self._config is None or self._config_bar is None or offset + width > self._config.size:
            raise BoundsError(f"{self.name} has no configuration at {offset:#x}, {width} bytes")
        bar, at = self._config_bar, self._config.offset + offset
        for _ in range(_CONFIG_TRIES):
            before = self._generation()
            if width == 8:
                value = bar.read32(at) | bar.read32(at + 4) << 32
            else:
                value = {1: bar.read8, 2: bar.read16, 4: bar.read32}[width](at)
            if self._generation() == before:
                return value
        raise VirtioDeadlineError(f"{self.name}: its configuration changes faster than it can be read")

    def _generation(self) -> int:
        return self._common.config_generation.read()

    def __repr__(self) -> str:
        return f"<PciTransport {self.name}>"
