"""Devices of the fake kernel that can be reset, and ops that note what is asked and fail on request."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

import vfio_user
from tests.unit.fake_device import CONFIG, FakeDevice
from vfio_user import VfioDevice
from vfio_user._uapi import ffi, lib
from vfio_user.device import DeviceOps
from vfio_user.errors import VfioIoctlError, VfioOSError
from vfio_user.kernel.ioctl import requests

if TYPE_CHECKING:
    from vfio_user._uapi import CData

__all__ = ["COMMAND", "Faulty", "ResettableDevice"]

COMMAND = 0x0107


class ResettableDevice(FakeDevice):
    """A device that knows what is reset with it: pairs of group and address, by (bus, devfn)."""

    def __init__(self, dependents: Sequence[tuple[int, int, int]] = ((7, 1, 0),)) -> None:
        super().__init__()
        self.dependents = dependents
        self.hot_resets: list[int] = []
        """How many group files came with each ``VFIO_DEVICE_PCI_HOT_RESET``."""
        self.write(CONFIG, 4, COMMAND.to_bytes(2, "little"))

    def ioctl(self, number: int, pointer: CData) -> int:
        if number == requests.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.number:
            return self._info(ffi.cast("struct vfio_pci_hot_reset_info *", pointer))
        if number == requests.VFIO_DEVICE_PCI_HOT_RESET.number:
            self.hot_resets.append(int(ffi.cast("struct vfio_pci_hot_reset *", pointer).count))
            return 0
        return super().ioctl(number, pointer)

    def _info(self, reply: CData) -> int:
        room = (int(reply.argsz) - 12) // 8
        reply.count = len(self.dependents)
        if room < len(self.dependents):
            return -errno.ENOSPC
        for number, (group, bus, devfn) in enumerate(self.dependents):
            entry = reply.devices[number]
            entry.group_id, entry.segment, entry.bus, entry.devfn = group, 0, bus, devfn
        return 0


class Faulty:
    """Ops that note every call, and raise at the one that a test says, or at every one of a kind."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.failing: dict[str, Exception] = {}

    def note(self, vdev: VfioDevice, what: str) -> None:
        self.calls.append(what)
        if what.split()[0] in self.failing:
            raise self.failing[what.split()[0]]
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            kind = what.split()[0]
            if kind in ("read", "write"):
                raise VfioOSError(errno.EIO, what)
            raise VfioIoctlError(errno.EIO, what, vdev.name)

    def ops(self) -> DeviceOps:
        import dataclasses

        return dataclasses.replace(
            vfio_user.PCI_OPS,
            name="faulty",
            read=self._read,
            write=self._write,
            set_irqs=self._set_irqs,
            reset=self._reset,
            reset_set=self._reset_set,
        )

    def _read(self, vdev: VfioDevice, offset: int, size: int) -> bytes:
        self.note(vdev, f"read {offset & 0xFFFF:#x}")
        return vfio_user.PCI_OPS.read(vdev, offset, size)

    def _write(self, vdev: VfioDevice, offset: int, data: bytes) -> None:
        self.note(vdev, f"write {offset & 0xFFFF:#x} {int.from_bytes(data, 'little'):#x}")
        vfio_user.PCI_OPS.write(vdev, offset, data)

    def _set_irqs(self, vdev: VfioDevice, index: int, flags: int, start: int, count: int, data: bytes) -> None:
        armed = flags & lib.VFIO_IRQ_SET_DATA_EVENTFD
        self.note(vdev, f"irqs {index} {'on' if armed else 'off'}")
        vfio_user.PCI_OPS.set_irqs(vdev, index, flags, start, count, data)

    def _reset(self, vdev: VfioDevice) -> None:
        self.note(vdev, "reset")
        vfio_user.PCI_OPS.reset(vdev)

    def _reset_set(self, vdev: VfioDevice, group_fds: Sequence[int]) -> None:
        self.note(vdev, "reset")
        vfio_user.PCI_OPS.reset_set(vdev, group_fds)
