"""The MMIO transport of virtio: a page of registers, one interrupt (virtio 1.2, 4.2)."""

from __future__ import annotations

import enum
import time

from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Access
from vfio_user.device.vector import IrqVector
from vfio_user.drivers.virtio.errors import VirtioDeadlineError, VirtioNeedsResetError, VirtioUnsupportedError
from vfio_user.drivers.virtio.queue import SplitQueue
from vfio_user.errors import DeadlineError
from vfio_user.platform.device import PlatformDevice

__all__ = ["MmioStatus", "VirtioMmio", "VirtioMmioRegisters"]

_MAGIC = 0x74726976
_MODERN = 2
_VERSION_1 = 1 << 32
_INTERRUPTS = 0x3


class MmioStatus(enum.IntFlag):
    """Device status (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class VirtioMmioRegisters(RegisterMap):
    """Registers of a virtio device, in region 0; all take 32 bits."""

    source = "virtio 1.2, 4.2.2"

    magic = Register(0x00, 32, Access.RO, doc="The letters virt.")
    version = Register(0x04, 32, Access.RO, doc="2; 1 is a legacy device.")
    device = Register(0x08, 32, Access.RO, doc="What it is (5); 0 for an empty place.")
    vendor = Register(0x0C, 32, Access.RO, doc="Whose it is.")
    device_features = Register(0x10, 32, Access.RO, doc="Half of what it offers.")
    device_features_sel = Register(0x14, 32, Access.WO, doc="Which half.")
    driver_features = Register(0x20, 32, Access.WO, doc="Half of what the driver takes.")
    driver_features_sel = Register(0x24, 32, Access.WO, doc="Which half.")
    queue_sel = Register(0x30, 32, Access.WO, doc="Which queue the registers below speak of.")
    queue_num_max = Register(0x34, 32, Access.RO, doc="Most descriptors; 0 for no queue.")
    queue_num = Register(0x38, 32, Access.WO, doc="Descriptors.")
    queue_ready = Register(0x44, 32, doc="1 while the device uses the queue.")
    queue_notify = Register(0x50, 32, Access.WO, doc="The number of a queue that has new buffers.")
    interrupt_status = Register(0x60, 32, Access.RO, doc="Bit 0: used buffers; bit 1: the configuration changed.")
    interrupt_ack = Register(0x64, 32, Access.WO, doc="Takes these reasons away.")
    status = Register(0x70, 32, doc="Device status.")
    queue_desc_low = Register(0x80, 32, Access.WO, doc="Descriptor table, low half.")
    queue_desc_high = Register(0x84, 32, Access.WO, doc="Descriptor table, high half.")
    queue_driver_low = Register(0x90, 32, Access.WO, doc="Available ring, low half.")
    queue_driver_high = Register(0x94, 32, Access.WO, doc="Available ring, high half.")
    queue_device_low = Register(0xA0, 32, Access.WO, doc="Used ring, low half.")
    queue_device_high = Register(0xA4, 32, Access.WO, doc="Used ring, high half.")


class VirtioMmio:
    """One virtio device behind its registers: features, queues, its interrupt.

    Lifetime:
        `begin`, `add_queue` for each queue, `go`; `stop` resets the device, which then knows no memory any more.
    Locking:
        One call at a time, but for `notify`.
    """

    def __init__(self, platform: PlatformDevice) -> None:
        """Take a device, which is not touched but for its identity.

        Raises:
            VirtioUnsupportedError: nothing is there, or a legacy device.
        """
        self.platform = platform
        """The device."""
        self.regs = VirtioMmioRegisters(platform.region(0))
        """Its registers."""
        magic, version = self.regs.magic.read(), self.regs.version.read()
        if magic != _MAGIC:
            raise VirtioUnsupportedError(f"{platform.name} is no virtio device: its magic is {magic:#010x}")
        self.device_id: int = self.regs.device.read()
        """What it is (virtio 1.2, 5)."""
        if self.device_id == 0:
            raise VirtioUnsupportedError(f"{platform.name} is an empty place: no virtio device is there")
        if version != _MODERN:
            raise VirtioUnsupportedError(f"{platform.name} is a legacy device (version {version}, not {_MODERN})")

    vector: IrqVector
    """Its interrupt: an edge."""

    def begin(self, wanted: int = 0, *, timeout: float = 5.0) -> int:
        """Reset the device, agree on features, enable its interrupt; give the features (3.1).

        Args:
            wanted: bits of those that are taken where they are offered, beside VERSION_1.
            timeout: seconds for the reset.

        Raises:
            VirtioUnsupportedError: it has no VERSION_1, or refuses what it has offered.
            VirtioDeadlineError: the reset takes longer.
        """
        self._reset(timeout)
        self._add(MmioStatus.ACKNOWLEDGE)
        self._add(MmioStatus.DRIVER)
        offered = sum(self._offered(half) << 32 * half for half in range(2))
        if not offered & _VERSION_1:
            raise VirtioUnsupportedError(f"{self.platform.name} does not offer VIRTIO_F_VERSION_1")
        agreed = offered & (wanted | _VERSION_1)
        for half in range(2):
            self.regs.driver_features_sel.write(half)
            self.regs.driver_features.write(agreed >> 32 * half & 0xFFFFFFFF)
        self._add(MmioStatus.FEATURES_OK)
        if not self.regs.status.read() & MmioStatus.FEATURES_OK:
            raise VirtioUnsupportedError(f"{self.platform.name} refuses features {agreed:#x} of those that it offers")
        (self.vector,) = self.platform.irq(0).enable(1)
        return agreed

    def queue_limit(self, number: int) -> int:
        """Give the most descriptors that a queue can have; 0 where there is no such queue."""
        self.regs.queue_sel.write(number)
        return self.regs.queue_num_max.read()

    def add_queue(self, number: int, queue: SplitQueue[object]) -> None:
        """Tell the device of a queue (4.2.3.2).

        Raises:
            VirtioUnsupportedError: it has no such queue, or only shorter ones.
        """
        limit = self.queue_limit(number)
        if queue.size > limit:
            raise VirtioUnsupportedError(f"{self.platform.name}: queue {number} has {limit} descriptors at most")
        regs = self.regs
        regs.queue_num.write(queue.size)
        for place, low, high in (
            (queue.descriptors_iova, regs.queue_desc_low, regs.queue_desc_high),
            (queue.available_iova, regs.queue_driver_low, regs.queue_driver_high),
            (queue.used_iova, regs.queue_device_low, regs.queue_device_high),
        ):
            low.write(place & 0xFFFFFFFF)
            high.write(place >> 32)
        regs.queue_ready.write(1)

    def go(self) -> None:
        """Let the device work: DRIVER_OK."""
        self._add(MmioStatus.DRIVER_OK)

    def notify(self, number: int) -> None:
        """Say that a queue has new buffers."""
        self.regs.queue_notify.write(number)

    def wait(self, timeout: float) -> None:
        """Wait for an interrupt, and acknowledge it.

        Raises:
            VirtioDeadlineError: none came within ``timeout`` seconds.
            VirtioNeedsResetError: the device can't go on.
        """
        try:
            self.vector.wait(timeout)
        except DeadlineError as error:
            raise VirtioDeadlineError(f"{self.platform.name}: no interrupt within {timeout:g} s") from error
        self.regs.interrupt_ack.write(self.regs.interrupt_status.read() & _INTERRUPTS)
        if self.regs.status.read() & MmioStatus.NEEDS_RESET:
            raise VirtioNeedsResetError(f"{self.platform.name} needs a reset")

    def stop(self, *, timeout: float = 5.0) -> None:
        """Reset the device and disable its interrupt: it knows no queue any more.

        Raises:
            VirtioDeadlineError: the reset takes longer; it may still use its queues.
        """
        try:
            self._reset(timeout)
        finally:
            self.platform.irq(0).disable()

    def _reset(self, timeout: float) -> None:
        self.regs.status.write(0)
        deadline = time.monotonic() + timeout
        while self.regs.status.read():
            if time.monotonic() > deadline:
                raise VirtioDeadlineError(f"{self.platform.name} does not come out of its reset")

    def _add(self, bits: MmioStatus) -> None:
        self.regs.status.write(self.regs.status.read() | bits)

    def _offered(self, half: int) -> int:
        self.regs.device_features_sel.write(half)
        return self.regs.device_features.read()
