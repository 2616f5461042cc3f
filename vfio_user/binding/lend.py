"""Bind a device of another bus than PCI for the length of a block. Nothing is written to the journal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vfio_user.binding.moves import attach, ensure_driver
from vfio_user.binding.record import check_driver_name
from vfio_user.binding.state import driver_override
from vfio_user.binding.transaction import deadline_after, refuse_in_use, use_kinds
from vfio_user.binding.uses import UseKind, uses
from vfio_user.errors import ArgumentError, BindError
from vfio_user.kernel import sysfs, writes

__all__ = ["lent"]


@contextmanager
def lent(
    device: sysfs.SysfsDevice,
    driver: str | None = None,
    *,
    force_in_use: Iterable[UseKind | str] = (),
    timeout: float = 30.0,
) -> Iterator[None]:
    """Bind a device for the length of a block.

    ``with lent(AmbaNode.find("9010000.pl031")): ...``

    At its end the device has the driver and the override that it had before. Close the device inside of the block. A
    process that is killed leaves it bound: the journal of `bind` is for PCI functions only.

    Args:
        device: a device of the platform, AMBA, css, fsl-mc or CDX bus.
        driver: another driver than the one that VFIO has for the bus.
        force_in_use: ways of being in use that are no reason to refuse: ``["interface"]``.
        timeout: seconds, to the end and again from there.

    Raises:
        ArgumentError: VFIO has no driver for the bus, or the name can't be one.
        InUseError: the device is in use; says how, and what would override it.
        BindError: the kernel lacks the driver, or it refused the device.
        DeadlineError: the kernel does not come back.
        VfioOSError: sysfs can't be written.
    """
    known = sysfs.VFIO_DRIVERS
    if driver is None and device.bus not in known:
        raise ArgumentError(f"{device.name} is on the bus {device.bus}; VFIO has drivers for: {', '.join(known)}")
    chosen = check_driver_name(driver or known[device.bus])
    forced, deadline = use_kinds(force_in_use), deadline_after(timeout)
    if device.driver != chosen:
        refuse_in_use(device, uses(device), forced)
    if not ensure_driver(device.bus, chosen, None, deadline):
        raise BindError(f"the kernel has no driver {chosen} of the bus {device.bus}: it was not configured")
    before, override = device.driver, driver_override(device)
    try:
        attach(device, chosen, deadline)
        yield
    finally:
        deadline = time.monotonic() + timeout
        attach(device, before, deadline)
        writes.write(device.path / "driver_override", f"{override or ''}\n", deadline)
