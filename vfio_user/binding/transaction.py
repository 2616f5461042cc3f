"""Change the drivers of all of the devices or of none, with a record on disk before anything is changed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vfio_user.addresses import PciAddress
from vfio_user.binding import nodes
from vfio_user.binding.journal import Journal, boot_id
from vfio_user.binding.moves import Fate, attach, ensure_driver, judge, put_back
from vfio_user.binding.record import Record
from vfio_user.binding.state import read_state
from vfio_user.binding.uses import Use, UseKind, uses
from vfio_user.errors import ArgumentError, BindError, BusyError, DeadlineError, InUseError, VfioError
from vfio_user.kernel import sysfs
from vfio_user.kernel.writes import outstanding

__all__ = ["Binding", "Order", "choose", "deadline_after", "make_order", "refuse_in_use", "run", "use_kinds"]

_ROLLBACK = 10.0


@dataclass(frozen=True, slots=True)
class Binding:
    """A device as `bind` or `unbind` left it."""

    address: PciAddress
    """Which device; its ``str()`` is what `vfio_user.open` takes."""
    driver: str | None
    """Its driver now; `None` for none."""
    before: str | None
    """Its driver when the call began."""
    nodes: tuple[str, ...]
    """Its VFIO nodes: ``("/dev/vfio/7", "/dev/vfio/devices/vfio0")``."""
    recorded: bool
    """Whether this call changed it first; `False` when it was as wanted already, or an earlier call had changed it."""

    @property
    def culprits(self) -> tuple[sysfs.PciFunction, ...]:
        """Devices of its group that keep the group from being used: bind them too, or take their drivers away."""
        number = sysfs.PciFunction(self.address).iommu_group
        return sysfs.group(number).culprits if number is not None else ()


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done, to whichever device."""

    driver: str | None
    """Driver to bind to; `None` for none."""
    owner: nodes.Owner | None
    """Whom to hand the nodes to."""
    forced: frozenset[UseKind]
    """Ways of being in use that are no reason to refuse."""
    fresh: bool
    """Whether to refuse devices that an earlier call has changed."""
    journal: Journal
    """Where records are kept."""
    deadline: float
    """On the clock of `time.monotonic`."""
    timeout: float
    """Seconds that all may take."""


def make_order(
    driver: str | None,
    owner: nodes.Owner | None,
    force_in_use: Iterable[UseKind | str],
    timeout: float,
    journal: Path | str | None,
    *,
    fresh: bool = False,
) -> Order:
    """Check what can be checked without looking at a device.

    Raises:
        ArgumentError: it can't be.
    """
    return Order(driver, owner, use_kinds(force_in_use), fresh, Journal(journal), deadline_after(timeout), timeout)


def deadline_after(timeout: float) -> float:
    """Give the end of a time in seconds that begins now, on the clock of `time.monotonic`.

    Raises:
        ArgumentError: it is not more than 0.
    """
    if not timeout > 0:  # so that what is no number at all is refused too
        raise ArgumentError(f"timeout must be more than 0 seconds, not {timeout}")
    return time.monotonic() + timeout


def use_kinds(kinds: Iterable[UseKind | str]) -> frozenset[UseKind]:
    """Read kinds of use from their names.

    Raises:
        ArgumentError: there is no such kind; lists them.
    """
    try:
        return frozenset(UseKind(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
    except ValueError as error:
        raise ArgumentError(f"{error}; there are: {', '.join(kind.value for kind in UseKind)}") from None


def choose(addresses: Iterable[str | PciAddress], *, siblings: bool) -> list[sysfs.PciFunction]:
    """Find the functions that are meant; with ``siblings``, also the others of their groups, but for bridges.

    Raises:
        ArgumentError: none was given, one is not an address, or the machine has no such function.
    """
    addresses = list(addresses)
    if not addresses:
        raise ArgumentError("no addresses were given")
    chosen = {each.address: each for each in map(sysfs.pci_function, addresses)}
    if siblings:
        for number in {each.iommu_group for each in chosen.values()} - {None}:
            members = sysfs.group(number).members if number is not None else ()
            chosen |= {each.address: each for each in members if not each.is_bridge}
    return list(chosen.values())


def run(order: Order, functions: list[sysfs.PciFunction]) -> tuple[Binding, ...]:
    """Do it to all of the functions, or leave all as they were."""
    with order.journal.locked(order.deadline):
        for function in functions:
            if function.driver != order.driver:
                refuse_in_use(function, uses(function), order.forced)
        if order.driver is not None and not ensure_driver("pci", order.driver, None, order.deadline):
            raise BindError(
                f"the kernel has no PCI driver {order.driver}: its module is not installed, or was not configured"
            )
        undo: list[tuple[PciAddress, Callable[[], None]]] = []
        try:
            return tuple(_change(order, function, undo) for function in functions)
        except BaseException as error:
            _roll_back(undo, error)
            raise


def refuse_in_use(device: sysfs.SysfsDevice, found: Iterable[Use], forced: frozenset[UseKind]) -> None:
    """Refuse a device that is in use in a way that was not named.

    Raises:
        InUseError: it is.
    """
    hurt = [use for use in found if use.kind not in forced]
    if hurt:
        names = " ".join(f"--force-in-use {kind}" for kind in dict.fromkeys(use.kind.value for use in hurt))
        raise InUseError(
            f"{device.name} (driver {device.driver or 'none'}) is in use: "
            f"{'; '.join(use.what for use in hurt)}. End that first, or insist: {names}",
            [(use.kind.value, use.what) for use in hurt],
        )


def _change(order: Order, function: sysfs.PciFunction, undo: list[tuple[PciAddress, Callable[[], None]]]) -> Binding:
    """Move one device, with a record on disk before."""
    address, journal, boot = function.address, order.journal, boot_id()
    state, earlier = read_state(function), journal.get(function.address)
    if earlier is not None and judge(earlier, boot) is not Fate.OURS:
        earlier = None
    if earlier is not None and order.fresh and (earlier.driver != order.driver or order.owner is not None):
        raise BusyError(f"{address} was given to {earlier.driver or 'no driver'} before: vfio-user restore {address}")
    if state.driver == order.driver and order.owner is None:
        return Binding(address, state.driver, state.driver, _paths(function, order), recorded=False)
    record = Record(
        address,
        function.vendor,
        function.device,
        boot,
        before=state if earlier is None else earlier.before,
        driver=order.driver,
        earlier=() if earlier is None else (*earlier.earlier, earlier.driver),
        nodes=() if earlier is None else earlier.nodes,
    )
    undo.append((address, lambda: _undo(order, function, dataclasses.replace(record, before=state), earlier)))
    journal.put(record)
    if state.driver != order.driver:
        attach(function, order.driver, order.deadline)
    paths = _paths(function, order)
    if order.owner is not None and paths:
        given = nodes.hand_over(map(Path, paths), order.owner)
        merged = {node.path: node for node in (*record.nodes, *given)}
        record = dataclasses.replace(record, nodes=tuple(merged.values()))
        journal.put(record)
        for node in given:
            nodes.set_owner(node)
    journal.put(dataclasses.replace(record, earlier=(), complete=True))
    return Binding(address, order.driver, state.driver, paths, recorded=earlier is None)


def _paths(function: sysfs.PciFunction, order: Order) -> tuple[str, ...]:
    if order.driver is None or "vfio" not in order.driver:
        return ()
    return tuple(str(path) for path in nodes.wait_for_nodes(function, order.deadline))


def _undo(order: Order, function: sysfs.PciFunction, record: Record, earlier: Record | None) -> None:
    put_back(function, record, time.monotonic() + min(order.timeout, _ROLLBACK))
    if outstanding():
        # The device looks as before, and will not when the kernel comes to it: the record has to stay.
        raise DeadlineError(f"the kernel has yet to change {function.address}; vfio-user restore puts it back then")
    if earlier is None:
        order.journal.remove(function.address)
    else:
        order.journal.put(earlier)


def _roll_back(undo: list[tuple[PciAddress, Callable[[], None]]], error: BaseException) -> None:
    left = []
    for address, step in reversed(undo):
        try:
            step()
        except VfioError as second:
            left.append(f"{address} could not be put back ({second})")
    if not left:
        return
    advice = f"{'; '.join(left)}. The journal knows what it was: vfio-user restore"
    if isinstance(error, Exception):
        raise BindError(f"{error}. Then {advice}") from error
    error.add_note(advice)
