"""Virtio over PCI, modern (virtio 1.2, 4.1): where the structures are, and what is done with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.drivers.virtio.errors import VirtioDeadlineError, VirtioError, VirtioUnsupportedError
from vfio_user.drivers.virtio.features import DeviceStatus, Feature
from vfio_user.errors import BoundsError, DeviceGoneError, MalformedReplyError
from vfio_user.pci.config import CapabilityId

if TYPE_CHECKING:
    from vfio_user.drivers.virtio.queue import SplitQueue
    from vfio_user.pci.device import PciDevice

__all__ = ["NO_VECTOR", "PciTransport", "Structure", "find_structures"]

# Types of structures (4.1.4).
_COMMON, _NOTIFY, _ISR, _DEVICE = 1, 2, 3, 4
_CAPABILITY_SIZE = 16
_COMMON_SIZE = 0x38

# Fields of the common configuration (4.1.4.3).
_DEVICE_FEATURE_SELECT, _DEVICE_FEATURE = 0x00, 0x04
_DRIVER_FEATURE_SELECT, _DRIVER_FEATURE = 0x08, 0x0C
_CONFIG_VECTOR, _NUM_QUEUES = 0x10, 0x12
_STATUS, _GENERATION = 0x14, 0x15
_QUEUE_SELECT, _QUEUE_SIZE, _QUEUE_VECTOR = 0x16, 0x18, 0x1A
_QUEUE_ENABLE, _QUEUE_NOTIFY_OFF = 0x1C, 0x1E
_QUEUE_ADDRESSES = 0x20

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


def find_structures(pci: PciDevice) -> dict[int, Structure]:
    """Walk the vendor capabilities and give the first structure of each type (4.1.4).

    Raises:
        MalformedReplyError: a capability is too short, or names a place outside of its BAR.
    """
    found: dict[int, Structure] = {}
    config = pci.config
    for capability in config.capabilities():
        if capability.identity != CapabilityId.VENDOR:
            continue
        at = capability.offset
        size, kind, bar = config.read8(at + 2), config.read8(at + 3), config.read8(at + 4)
        if kind not in (_COMMON, _NOTIFY, _ISR, _DEVICE) or kind in found or bar > 5:
            continue  # others are reserved, to be ignored
        if size < _CAPABILITY_SIZE + (4 if kind == _NOTIFY else 0):
            raise MalformedReplyError(f"{pci.name}: the virtio capability at {at:#x} has {size} bytes")
        offset, length = config.read32(at + 8), config.read32(at + 12)
        region = pci.bars[bar]
        if region is None or offset + length > region.size:
            raise MalformedReplyError(
                f"{pci.name}: virtio structure {kind} is at {offset:#x} of BAR {bar}, {length:#x} bytes: outside of it"
            )
        found[kind] = Structure(bar, offset, length, config.read32(at + 16) if kind == _NOTIFY else 0)
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
        self._bar, self._base = pci.bar(common.bar), common.offset
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
        value = self._bar.read8(self._base + _STATUS)
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
        self._bar.write8(self._base + _STATUS, value)

    def reset(self) -> None:
        """Reset the device (2.4, 4.1.4.3.1): no DMA, no interrupts, no queues afterwards.

        Raises:
            VirtioDeadlineError: it does not say that it is done.
            DeviceGoneError: it reads as all-ones.
        """
        self._bar.write8(self._base + _STATUS, 0)
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
            self._bar.write32(self._base + _DEVICE_FEATURE_SELECT, half)
            features |= self._bar.read32(self._base + _DEVICE_FEATURE) << 32 * half
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
            self._bar.write32(self._base + _DRIVER_FEATURE_SELECT, half)
            self._bar.write32(self._base + _DRIVER_FEATURE, features >> 32 * half & 0xFFFF_FFFF)
        self.set_status(DeviceStatus.FEATURES_OK)
        if not self.status & DeviceStatus.FEATURES_OK:
            raise VirtioUnsupportedError(f"{self.name} refuses the features {features:#x}; it offered {offered:#x}")
        return features

    # -- queues (4.1.5.1.3)

    @property
    def num_queues(self) -> int:
        """How many queues it can have."""
        return self._bar.read16(self._base + _NUM_QUEUES)

    def max_queue_size(self, index: int) -> int:
        """Tell the most descriptors of a queue; 0 when there is no such queue."""
        self._bar.write16(self._base + _QUEUE_SELECT, index)
        return self._bar.read16(self._base + _QUEUE_SIZE)

    def notifier(self, index: int) -> Callable[[], None]:
        """Give what notifies the device of buffers in a queue (4.1.5.2).

        Raises:
            MalformedReplyError: its place is outside of the structure.
        """
        self._bar.write16(self._base + _QUEUE_SELECT, index)
        place = self._bar.read16(self._base + _QUEUE_NOTIFY_OFF) * self._notify.multiplier
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
        bar, base = self._bar, self._base
        bar.write16(base + _QUEUE_SELECT, index)
        bar.write16(base + _QUEUE_SIZE, queue.size)
        bar.write16(base + _QUEUE_VECTOR, vector)
        if bar.read16(base + _QUEUE_VECTOR) != vector:
            raise VirtioError(f"{self.name} has no resources for vector {vector} of queue {index}")
        addresses = (queue.descriptors_iova, queue.available_iova, queue.used_iova)
        for number, iova in enumerate(addresses):  # as halves: 64-bit fields need not take 64-bit accesses (4.1.3.1)
            bar.write32(base + _QUEUE_ADDRESSES + 8 * number, iova & 0xFFFF_FFFF)
            bar.write32(base + _QUEUE_ADDRESSES + 8 * number + 4, iova >> 32)
        bar.write16(base + _QUEUE_ENABLE, 1)

    # -- configuration

    def set_config_vector(self, vector: int = NO_VECTOR) -> None:
        """Say which vector tells of changes of the configuration.

        Raises:
            VirtioError: the device has no room for the vector.
        """
        self._bar.write16(self._base + _CONFIG_VECTOR, vector)
        if self._bar.read16(self._base + _CONFIG_VECTOR) != vector:
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
        return self._bar.read8(self._base + _GENERATION)

    def __repr__(self) -> str:
        return f"<PciTransport {self.name}>"
