"""What users call: `bind`, `unbind`, `bound`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vfio_user.addresses import PciAddress
from vfio_user.binding.nodes import find_owner
from vfio_user.binding.record import check_driver_name
from vfio_user.binding.restoring import restore
from vfio_user.binding.transaction import Binding, choose, make_order, run
from vfio_user.binding.uses import UseKind

__all__ = ["bind", "bound", "unbind"]


def bind(
    *addresses: str | PciAddress,
    driver: str = "vfio-pci",
    siblings: bool = False,
    user: str | int | None = None,
    group: str | int | None = None,
    force_in_use: Iterable[UseKind | str] = (),
    timeout: float = 30.0,
    journal: Path | str | None = None,
) -> tuple[Binding, ...]:
    """Give PCI devices to ``vfio-pci``, all or none; `restore` puts them back, after a crash too.

    What each device was is on disk before anything is changed. When a step fails, all of them are put back.

    Args:
        addresses: PCI addresses.
        driver: another driver to bind to, such as a variant of ``vfio-pci``. Its module is loaded if need be.
        siblings: also bind the other devices of their IOMMU groups, but for bridges.
        user: owner of the nodes, by name or number, so that no privilege is needed afterwards.
        group: group of the nodes, by name or number; may open them then.
        force_in_use: ways of being in use that are no reason to refuse: ``["interface"]``.
        timeout: seconds for all of it.
        journal: folder of the records, ``/run/vfio-user/journal`` by default.

    Raises:
        ArgumentError: not an address, no such device, user or driver.
        InUseError: a device is in use; says how, and what would override it.
        BindError: a driver refused a device.
        BusyError: another process holds the journal.
        DeadlineError: the kernel does not come back, or a node does not appear.
        VfioOSError: sysfs, the journal or a node can't be written.
    """
    owner = find_owner(user, group)
    order = make_order(check_driver_name(driver), owner, force_in_use, timeout, journal)
    return run(order, choose(addresses, siblings=siblings))


def unbind(
    *addresses: str | PciAddress,
    force_in_use: Iterable[UseKind | str] = (),
    timeout: float = 30.0,
    journal: Path | str | None = None,
) -> tuple[Binding, ...]:
    """Take devices from their drivers and leave them without one, all or none; `restore` puts them back.

    A group may be used when each device of it is bound to ``vfio-pci`` or to no driver: this is for those of its
    devices that nobody is to use. Arguments and errors are those of `bind`.
    """
    return run(make_order(None, None, force_in_use, timeout, journal), choose(addresses, siblings=False))


@contextmanager
def bound(
    *addresses: str | PciAddress,
    driver: str = "vfio-pci",
    siblings: bool = False,
    user: str | int | None = None,
    group: str | int | None = None,
    force_in_use: Iterable[UseKind | str] = (),
    timeout: float = 30.0,
    journal: Path | str | None = None,
) -> Iterator[tuple[Binding, ...]]:
    """Bind devices for the length of a block: ``with vfio_user.bound("0000:01:00.0"):``.

    At its end those are put back that it has changed. Close the devices inside of the block. Arguments and errors are
    those of `bind`.
    """
    owner = find_owner(user, group)
    order = make_order(check_driver_name(driver), owner, force_in_use, timeout, journal, fresh=True)
    bindings = run(order, choose(addresses, siblings=siblings))
    try:
        yield bindings
    finally:
        changed = [each.address for each in bindings if each.recorded]
        if changed:
            restore(*changed, timeout=timeout, journal=journal)
