"""The ops table: what a kind of device does, one call at a time, with the core's own way as the default."""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi, lib
from vfio_user.device import info
from vfio_user.errors import UnsupportedError, VfioIoctlError, VfioOSError
from vfio_user.kernel import tracing
from vfio_user.kernel.ioctl import ioctl, requests
from vfio_user.kernel.uapi import DeviceFlags, IrqFlags, RegionFlags

if TYPE_CHECKING:
    from vfio_user.device.base import VfioDevice

__all__ = ["CORE_OPS", "DeviceOps"]

_IRQ_SET = struct.Struct("=5I")


@dataclass(frozen=True, slots=True)
class DeviceOps:
    """What can be done with a device; every entry gets the `VfioDevice`.

    A bus or a variant driver takes a table and replaces single entries, calling the ones it replaces for the rest::

        def reset(vdev):
            flush_my_firmware(container_of(vdev, PciDevice.vdev))
            PCI_OPS.reset(vdev)

        MY_OPS = dataclasses.replace(PCI_OPS, name="my-variant", reset=reset)
    """

    name: str
    """Name of the table, for messages and ``repr``."""
    device_info: Callable[[VfioDevice], info.DeviceInfo]
    """Ask what the device is: ``VFIO_DEVICE_GET_INFO``."""
    region_indexes: Callable[[VfioDevice], Sequence[int]]
    """Say which regions to ask for, ascending; those that ``VFIO_DEVICE_GET_INFO`` counts, and others."""
    region_info: Callable[[VfioDevice, int], info.RegionInfo]
    """Ask for one region by index: ``VFIO_DEVICE_GET_REGION_INFO``."""
    irq_info: Callable[[VfioDevice, int], info.IrqInfo]
    """Ask for one kind of interrupt by index: ``VFIO_DEVICE_GET_IRQ_INFO``."""
    mappable_areas: Callable[[VfioDevice, info.RegionInfo], tuple[info.SparseArea, ...]]
    """Choose the parts of a region to map, ordered; called while the device is being made."""
    irq_label: Callable[[VfioDevice, int], str]
    """Give the usual name of an interrupt kind, for messages."""
    set_irqs: Callable[[VfioDevice, int, int, int, int, bytes], None]
    """Set interrupts up: index, flags, start, count, data: ``VFIO_DEVICE_SET_IRQS``."""
    read: Callable[[VfioDevice, int, int], bytes]
    """Read from the device's file: file offset, size: ``pread``."""
    write: Callable[[VfioDevice, int, bytes], None]
    """Write to the device's file: file offset, data: ``pwrite``."""
    reset: Callable[[VfioDevice], None]
    """Reset the device alone: ``VFIO_DEVICE_RESET``."""
    reset_set: Callable[[VfioDevice, Sequence[int]], None]
    """Reset all devices of the device's set, the files of their groups given: on PCI ``VFIO_DEVICE_PCI_HOT_RESET``."""
    init: Callable[[VfioDevice], None]
    """Called once when the device is made, before it can be used."""
    open_device: Callable[[VfioDevice], None]
    """Called when the device is open, before its first user."""
    close_device: Callable[[VfioDevice], None]
    """Called when its last user is gone, before its file is closed."""
    open_first: Callable[[VfioDevice], None]
    """Called for the first device of a set that is opened, before `open_device`, under the set's lock."""
    close_last: Callable[[VfioDevice], None]
    """Called for the last device of a set that is closed, before `close_device`, under the set's lock."""


def _device_info(vdev: VfioDevice) -> info.DeviceInfo:
    return info.device_info(vdev.fileno(), vdev.name)


def _region_indexes(vdev: VfioDevice) -> Sequence[int]:
    return range(vdev.info.num_regions)


def _region_info(vdev: VfioDevice, index: int) -> info.RegionInfo:
    try:
        return info.region_info(vdev.fileno(), index, vdev.name)
    except VfioIoctlError as error:
        # Some regions are refused on devices that lack them, the VGA ranges among them; others have a size of 0.
        if error.errno != errno.EINVAL:
            raise
        return info.RegionInfo(index, RegionFlags(0), 0, 0)


def _irq_info(vdev: VfioDevice, index: int) -> info.IrqInfo:
    try:
        return info.irq_info(vdev.fileno(), index, vdev.name)
    except VfioIoctlError as error:
        # ERR is refused on devices that are not PCI Express, by kernels before 7.
        if error.errno != errno.EINVAL:
            raise
        return info.IrqInfo(index, IrqFlags(0), 0)


def _mappable_areas(vdev: VfioDevice, region: info.RegionInfo) -> tuple[info.SparseArea, ...]:
    return region.mappable_areas


def _irq_label(vdev: VfioDevice, index: int) -> str:
    return f"irq {index}"


def _set_irqs(vdev: VfioDevice, index: int, flags: int, start: int, count: int, data: bytes) -> None:
    argument = bytearray(_IRQ_SET.pack(_IRQ_SET.size + len(data), flags, index, start, count) + data)
    pointer = ffi.from_buffer("struct vfio_irq_set *", argument)
    ioctl(vdev.fileno(), requests.VFIO_DEVICE_SET_IRQS, pointer, device=vdev.name)


def _read(vdev: VfioDevice, file_offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    begin = None if tracing.sink is None else time.monotonic_ns()
    done = lib.vu_pread(vdev.fileno(), ffi.from_buffer(buffer), size, file_offset)
    if begin is not None:
        _report(vdev, "pread", begin, buffer, file_offset, done)
    _check_transfer(vdev, "read", done, size, file_offset)
    return bytes(buffer)


def _write(vdev: VfioDevice, file_offset: int, data: bytes) -> None:
    begin = None if tracing.sink is None else time.monotonic_ns()
    done = lib.vu_pwrite(vdev.fileno(), ffi.from_buffer(data), len(data), file_offset)
    if begin is not None:
        _report(vdev, "pwrite", begin, data, file_offset, done)
    _check_transfer(vdev, "write", done, len(data), file_offset)


def _report(vdev: VfioDevice, verb: str, begin: int, data: bytes | bytearray, file_offset: int, done: int) -> None:
    """Report a transfer through the device's file to who traces."""
    if tracing.sink is None:
        return
    where: dict[str, object] = {"file_offset": hex(file_offset)}
    for each in getattr(vdev, "regions", ()):  # a device reads itself before it has them
        if each is not None and 0 <= file_offset - each.info.file_offset < each.size:
            where = {"region": each.index, "offset": hex(file_offset - each.info.file_offset)}
    said: dict[str, object] = {"errno": errno.errorcode.get(-done, -done)} if done < 0 else {}
    if done >= 0 and len(data) <= 8:
        said["value"] = hex(int.from_bytes(data, "little"))
    arguments = {"device": vdev.name, **where, "size": len(data), **said}
    tracing.sink.span("file", verb, begin, time.monotonic_ns(), arguments)


def _check_transfer(vdev: VfioDevice, verb: str, done: int, size: int, file_offset: int) -> None:
    if done == size:
        return
    what = f"{verb} {size} bytes of {vdev.name} at file offset {file_offset:#x}"
    if done < 0:
        raise VfioOSError(-done, what, "Memory decoding is off, or the device is gone" if -done == errno.EIO else "")
    raise VfioOSError(errno.EIO, f"{what}: {done} bytes only")


def _reset(vdev: VfioDevice) -> None:
    if not vdev.info.flags & DeviceFlags.RESET:
        raise UnsupportedError(
            f"{vdev.name} can't be reset alone: the kernel has no reset method for it (reset_method in sysfs)"
        )
    ioctl(vdev.fileno(), requests.VFIO_DEVICE_RESET, device=vdev.name)


def _reset_set(vdev: VfioDevice, group_fds: Sequence[int]) -> None:
    raise UnsupportedError(f"{vdev.name}: its bus has no way to reset several devices together")


def _nothing(vdev: VfioDevice) -> None:
    """The core needs no work of its own here."""


CORE_OPS = DeviceOps(
    name="vfio",
    device_info=_device_info,
    region_indexes=_region_indexes,
    region_info=_region_info,
    irq_info=_irq_info,
    mappable_areas=_mappable_areas,
    irq_label=_irq_label,
    set_irqs=_set_irqs,
    read=_read,
    write=_write,
    reset=_reset,
    reset_set=_reset_set,
    init=_nothing,
    open_device=_nothing,
    close_device=_nothing,
    open_first=_nothing,
    close_last=_nothing,
)
