"""Device sets of PCI: what a hot reset of a slot or bus resets together."""

from __future__ import annotations

import errno
import time
from collections.abc import Hashable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vfio_user.device.devset import DeviceSet
from vfio_user.device.embed import container_of
from vfio_user.device.reset import LOCK_TIMEOUT
from vfio_user.errors import UnsupportedError, VfioIoctlError
from vfio_user.iommu.group import open_group
from vfio_user.kernel import sysfs
from vfio_user.pci.hot_reset_info import HotResetInfo, hot_reset_info
from vfio_user.pci.plan import ResetPlan, make_plan
from vfio_user.pci.report import PhaseClock, ResetReport
from vfio_user.pci.reset import ResetTransaction

if TYPE_CHECKING:
    from vfio_user.pci.device import PciDevice

__all__ = ["PciDeviceSet", "hot_reset", "set_of"]


class PciDeviceSet(DeviceSet):
    """The PCI functions of one reset domain that this process has open.

    As in the kernel, a domain is a slot where the slot can be reset, else a bus; a function on a root bus and a
    virtual function are one for themselves.

    Lifetime:
        See `DeviceSet`; ``pci.device_set`` is the one of a device.
    Locking:
        See `DeviceSet`.
    """

    @property
    def members(self) -> tuple[PciDevice, ...]:
        """The functions in it, ordered by name."""
        from vfio_user.pci.device import PciDevice

        return tuple(container_of(each, PciDevice.vdev) for each in self.devices)

    def plan(self) -> ResetPlan:
        """Say what `hot_reset` would do, without doing it.

        Raises:
            UnsupportedError: the device can't be hot-reset at all, or no device of the set is open.
        """
        leader, info = _ask(self.members)
        return make_plan(leader.name, info)

    def hot_reset(self, *, lock_timeout: float = LOCK_TIMEOUT) -> ResetReport:
        """Reset the slot or bus: ``VFIO_DEVICE_PCI_HOT_RESET``; see `vfio_user.pci.reset.ResetTransaction`.

        Args:
            lock_timeout: seconds for the set's lock and the memory locks together.

        Raises:
            UnsupportedError: neither slot nor bus can be reset.
            NotOwnedError: it would reset devices that are not ours; names them.
            ResetBlockedError: a neighbour that is not bound to a VFIO driver is in the way; names it.
            MemoryLockBusyError: a reader did not leave in time; names device and thread. Nothing was reset.
            BusyError: another reset is under way, or the kernel stayed busy. Nothing was reset.
            ResetFailedError: it failed; the devices stay switched off until another reset succeeds.
            DeviceGoneError: the devices do not answer any more.
            NotRestoredError: it was done, but a driver, a peer's mapping or an interrupt did not come back.
            LockOrderError: this thread is inside of a read section.
        """
        clock, deadline = PhaseClock(), time.monotonic() + lock_timeout
        with ExitStack() as stack:
            with clock.phase("lock of the set"):
                stack.enter_context(self.locked(lock_timeout))
            with clock.phase("plan"):
                members = self.members
                leader, info = _ask(members)
                if not _is_all_ours(members, info):
                    make_plan(leader.name, info).require()
                group_fds = [_group_fd(number) for number in info.groups]
                addresses = {each.address for each in info.functions}
                devices = [each for each in members if each.address in addresses]
            vdev = leader.vdev
            try:
                return ResetTransaction(
                    "hot reset", devices, lambda: vdev.ops.reset_set(vdev, group_fds), clock, deadline
                ).run()
            except VfioIoctlError as error:
                if error.errno == errno.EINVAL:
                    self.plan().require()  # says what the kernel minds, if it came up since the plan was made
                raise


def _ask(members: Sequence[PciDevice]) -> tuple[PciDevice, HotResetInfo]:
    if not members:
        raise UnsupportedError("no device of the set is open, so there is nobody to ask for a hot reset")
    with members[0].vdev.user() as fd:
        return members[0], hot_reset_info(fd, members[0].name)


def _is_all_ours(members: Sequence[PciDevice], info: HotResetInfo) -> bool:
    """Tell whether all that is affected is open here and owned: nothing can stand against it then."""
    opened = {each.address for each in members}
    return all(each.address in opened and each.owned is not False for each in info.functions)


def _group_fd(number: int) -> int:
    """Give the file of a group that this process has open."""
    group = open_group(number)
    if group is None:
        raise UnsupportedError(f"group {number} was closed while the reset was being planned")
    return group.fd.fileno()


def set_of(function: sysfs.PciFunction, fd: int) -> PciDeviceSet:
    """Give the set of a function, by the key that the kernel uses.

    Source: ``vfio_pci_core_register_device()``.
    """
    return PciDeviceSet.of(_key(function, fd))


def _key(function: sysfs.PciFunction, fd: int) -> Hashable:
    address = function.address
    if function.on_root_bus or function.is_virtual:
        return ("function", str(address))
    try:
        info = hot_reset_info(fd, str(address))
    except UnsupportedError:
        return ("bus", address.domain, address.bus)
    return _domain(function, info)


def _domain(function: sysfs.PciFunction, info: HotResetInfo) -> Hashable:
    """A slot when nothing else of the bus is affected, else the bus: the kernel does not say which it resets."""
    address = function.address
    same_bus = [each.address for each in info.functions if each.address.slot[:2] == address.slot[:2]]
    if all(each.slot == address.slot for each in same_bus):
        return ("slot", *address.slot)
    return ("bus", address.domain, address.bus)


def hot_reset(
    devices: PciDevice | Iterable[PciDevice], *, lock_timeout: float = LOCK_TIMEOUT
) -> tuple[ResetReport, ...]:
    """Hot-reset the slots or buses of devices, each once, one after the other; see `PciDeviceSet.hot_reset`.

    Args:
        devices: one, or several, of the same slot or of different ones.
        lock_timeout: seconds, for each.

    Returns:
        One report for each slot or bus.
    """
    from vfio_user.pci.device import PciDevice

    chosen = [devices] if isinstance(devices, PciDevice) else list(devices)
    sets = dict.fromkeys(each.device_set for each in chosen)
    return tuple(each.hot_reset(lock_timeout=lock_timeout) for each in sets)
