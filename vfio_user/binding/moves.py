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


def attach(function: sysfs.PciFunction, driver: str | None, deadline: float) -> None:
    """Bind a device to a driver and to no other; `None` leaves it without one.

    Raises:
        BindError: the driver refused the device.
        DeadlineError: the kernel does not come back.
        VfioOSError: sysfs refused.
    """
    writes.write(function.path / "driver_override", f"{override_for(driver)}\n", deadline)
    if function.driver == driver:
        return
    detach(function, deadline)
    if driver is not None:
        _take(function, driver, deadline)


def detach(function: sysfs.PciFunction, deadline: float) -> None:
    """Take a device from its driver, if it has one."""
    if function.driver is None:
        return
    try:
        writes.write(function.path / "driver/unbind", str(function.address), deadline)
    except VfioOSError as error:
        # It may have lost its driver by itself meanwhile.
        if error.errno not in (errno.ENOENT, errno.ENODEV) or function.driver is not None:
            raise
    if function.driver is not None:
        raise BindError(f"{function.address} is still bound to {function.driver}")


def put_back(function: sysfs.PciFunction, record: Record, deadline: float) -> str:
    """Make a device what it was: driver, override, virtual functions, owner of the nodes.

    Returns:
        What could not be as it was, in words; empty when all is.

    Raises:
        BindError, DeadlineError, VfioOSError: it can't be; the record is still good for another try.
    """
    before, note = record.before, ""
    if function.driver != before.driver:
        if before.driver is None or ensure_driver(before.driver, before.module, deadline):
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


def ensure_driver(driver: str, module: str | None, deadline: float) -> bool:
    """Tell whether the kernel has a PCI driver, after loading its module if that is needed."""
    folder = sysfs.SYSFS / "bus/pci/drivers" / driver
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


def _take(function: sysfs.PciFunction, driver: str, deadline: float) -> None:
    try:
        # The driver's own file, not drivers_probe: it gives the errno with which the driver refuses.
        writes.write(sysfs.SYSFS / "bus/pci/drivers" / driver / "bind", str(function.address), deadline)
    except VfioOSError as error:
        # udev or a module that was just loaded may have come first; the override leaves them no other driver.
        if function.driver != driver:
            raise BindError(_refusal(function, driver, error)) from error
    if function.driver != driver:
        raise BindError(f"{function.address} is bound to {function.driver or 'no driver'} instead of {driver}")


def _refusal(function: sysfs.PciFunction, driver: str, error: VfioOSError) -> str:
    text = f"driver {driver} does not take {function.address}: {error.strerror}"
    if error.errno == errno.EBUSY and "vfio" not in driver:
        return f"{text}. A device of its IOMMU group is in use through VFIO; close that first"
    if error.errno == errno.EINVAL and "vfio" in driver and function.iommu_group is None:
        return f"{text}. No IOMMU translates for it: vfio-user doctor {function.address} says what can be done"
    return f"{text}. dmesg may say more"
