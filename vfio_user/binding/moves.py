"""Move one device from driver to driver, and back to what a record says it was."""

from __future__ import annotations

import enum
import errno
import shutil
import subprocess
import time

from vfio_user.binding import files, nodes
from vfio_user.binding.record import Record, override_for
from vfio_user.binding.state import driver_override, read_state
from vfio_user.errors import BindError, DeadlineError, VfioOSError
from vfio_user.kernel import sysfs, writes

__all__ = ["Fate", "attach", "detach", "ensure_driver", "judge", "put_back"]


class Fate(enum.Enum):
    """What has become of a device since its record was written."""

    OURS = "ours"
    """It is as we left it, or on the way: it can be put back."""
    BACK = "back"
    """It is as it was before."""
    GONE = "gone"
    """It was unplugged."""
    REPLACED = "replaced"
    """Another device sits there."""
    REBOOTED = "rebooted"
    """The machine was booted since: the kernel chose anew."""
    TAKEN = "taken"
    """Somebody else has bound it since: it is not ours to put back."""


def judge(record: Record, boot: str) -> Fate:
    """Compare a record with the device as it is."""
    function = sysfs.PciFunction(record.address)
    if record.boot != boot:
        return Fate.REBOOTED
    if not function.exists():
        return Fate.GONE
    if (function.vendor, function.device) != (record.vendor, record.device):
        return Fate.REPLACED
    driver, override = function.driver, driver_override(function)
    before = record.before
    if (driver, override) == (before.driver, before.override):
        # The same to look at, when it was bound already and only its nodes were handed over.
        return Fate.OURS if record.driver == driver else Fate.BACK
    return Fate.OURS if driver in record.drivers and override in record.overrides else Fate.TAKEN


def attach(device: sysfs.SysfsDevice, driver: str | None, deadline: float) -> None:
    """Bind a device to a driver and to no other; `None` leaves it without one.

    Raises:
        BindError: the driver refused the device.
        DeadlineError: the kernel does not come back.
        VfioOSError: sysfs refused.
    """
    writes.write(device.path / "driver_override", f"{override_for(driver)}\n", deadline)
    if device.driver == driver:
        return
    detach(device, deadline)
    if driver is not None:
        _take(device, driver, deadline)


def detach(device: sysfs.SysfsDevice, deadline: float) -> None:
    """Take a device from its driver, if it has one.

    Raises:
        BindError: the driver has it still.
        DeadlineError: the kernel does not come back.
        VfioOSError: sysfs refused.
    """
    if device.driver is None:
        return
    try:
        writes.write(device.path / "driver/unbind", device.name, deadline)
    except VfioOSError as error:
        # It may have lost its driver by itself meanwhile.
        if error.errno not in (errno.ENOENT, errno.ENODEV) or device.driver is not None:
            raise
    if device.driver is not None:
        raise BindError(f"{device.name} is still bound to {device.driver}")


def put_back(function: sysfs.PciFunction, record: Record, deadline: float) -> str:
    """Make a device what it was: driver, override, virtual functions, owner of the nodes.

    Returns:
        What could not be as it was, in words; empty when all is.

    Raises:
        BindError, DeadlineError, VfioOSError: it can't be; the record is still good for another try.
    """
    before, note = record.before, ""
    if function.driver != before.driver:
        if before.driver is None or ensure_driver(function.bus, before.driver, before.module, deadline):
            attach(function, before.driver, deadline)
        else:
            attach(function, None, deadline)
            note = f"driver {before.driver} is not there any more"
    if driver_override(function) != before.override:
        writes.write(function.path / "driver_override", f"{before.override or ''}\n", deadline)
    if note:
        writes.write(sysfs.SYSFS / "bus/pci/drivers_probe", str(function.address), deadline)
        note += f", so the kernel chose: {function.driver or 'none'}"
    if before.numvfs and read_state(function).numvfs == 0:
        writes.write(function.path / "sriov_numvfs", f"{before.numvfs}\n", deadline)
    nodes.give_back(before.nodes, record.nodes)
    return note


def ensure_driver(bus: str, driver: str, module: str | None, deadline: float) -> bool:
    """Tell whether the kernel has a driver of a bus, after loading its module if that is needed.

    Raises:
        DeadlineError: modprobe does not come back.
    """
    folder = sysfs.SYSFS / "bus" / bus / "drivers" / driver
    program = shutil.which("modprobe") or files.text(files.PROC / "sys/kernel/modprobe")
    if not folder.is_dir() and program:
        try:
            subprocess.run(
                [program, module or driver],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=max(0.1, deadline - time.monotonic()),
                check=False,
            )
        except OSError:
            return False
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"modprobe {module or driver} does not come back") from None
    return folder.is_dir()


def _take(device: sysfs.SysfsDevice, driver: str, deadline: float) -> None:
    try:
        # The driver's own file, not drivers_probe: it gives the errno with which the driver refuses.
        writes.write(sysfs.SYSFS / "bus" / device.bus / "drivers" / driver / "bind", device.name, deadline)
    except VfioOSError as error:
        # udev or a module that was just loaded may have come first; the override leaves them no other driver.
        if device.driver != driver:
            raise BindError(_refusal(device, driver, error)) from error
    if device.driver != driver:
        raise BindError(f"{device.name} is bound to {device.driver or 'no driver'} instead of {driver}")


def _refusal(device: sysfs.SysfsDevice, driver: str, error: VfioOSError) -> str:
    text = f"driver {driver} does not take {device.name}: {error.strerror}"
    if error.errno == errno.EBUSY and "vfio" not in driver:
        return f"{text}. A device of its IOMMU group is in use through VFIO; close that first"
    if error.errno == errno.EINVAL and "vfio" in driver and device.iommu_group is None:
        if device.bus != "pci":
            return f"{text}. No IOMMU translates for it, and the module vfio was not told enable_unsafe_noiommu_mode=1"
        return f"{text}. No IOMMU translates for it: vfio-user doctor {device.name} says what can be done"
    if error.errno == errno.ENOENT and driver == "vfio-platform":
        return f"{text}. It can't reset such a device, and vfio_platform.reset_required=0 was not given"
    return f"{text}. dmesg may say more"
