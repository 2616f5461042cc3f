"""Virtual functions (SR-IOV): made through a physical function that is bound to ``vfio-pci``, and unmade.

Source: ``vfio_pci_core_sriov_configure()`` of ``drivers/vfio/pci/vfio_pci_core.c``, and
``Documentation/PCI/pci-iov-howto.rst`` of Linux.
"""

from __future__ import annotations

import errno
import time
from types import TracebackType
from typing import Self

from vfio_user import findings
from vfio_user.addresses import PciAddress
from vfio_user.binding import nodes
from vfio_user.binding.state import expected_nodes
from vfio_user.binding.uses import openers
from vfio_user.errors import ArgumentError, BindError, BusyError, InUseError, UnsupportedError, VfioError, VfioOSError
from vfio_user.kernel import sysfs, writes
from vfio_user.kernel.topology import virtual_functions

__all__ = ["VirtualFunctions", "create_vfs"]

_DRIVER = "vfio-pci"
_ROLLBACK = 10.0
_NAP = 0.02


class VirtualFunctions:
    """Virtual functions of one physical function, made by `create_vfs`; they can be opened like any device.

    Each needs the VF token that the opener of the physical function has set: ``open(address, vf_token=token)``.

    Lifetime:
        `destroy()`, or the ``with`` block. They outlive this process: nothing else ends them but the physical
        function's driver.
    Locking:
        For one thread at a time; processes exclude each other by the kernel's own lock of the function.
    """

    def __init__(self, physical: sysfs.PciFunction, functions: tuple[sysfs.PciFunction, ...]) -> None:
        self.physical = physical
        """The physical function."""
        self.functions = functions
        """The virtual functions, by their numbers."""
        self._there = True

    @property
    def addresses(self) -> tuple[PciAddress, ...]:
        """Where they sit."""
        return tuple(each.address for each in self.functions)

    def destroy(self, timeout: float = 30.0) -> None:
        """Switch all of them off; doing so twice does nothing.

        Raises:
            InUseError: a process has one of them open; names it. Nothing was done.
            DeadlineError: the kernel does not come back: it waits for whoever has opened one meanwhile.
            VfioOSError: sysfs can't be written.
        """
        if not self._there:
            return
        held = [(each.name, pid, name) for each in self.functions for pid, name in openers(each)]
        if held:
            words = ", ".join(f"process {pid} ({name}) has {vf} open" for vf, pid, name in held)
            raise InUseError(f"{words}: close it first", [("open", words)])
        _set_number(self.physical, 0, time.monotonic() + timeout)
        self._there = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def __repr__(self) -> str:
        state = "" if self._there else " destroyed"
        return f"<VirtualFunctions {len(self.functions)} of {self.physical.name}{state}>"


def create_vfs(address: str | PciAddress, count: int, *, timeout: float = 30.0) -> VirtualFunctions:
    """Switch virtual functions of a physical function on: all of them usable through VFIO, or none.

    The physical function is bound to ``vfio-pci``, open or not, in this process or another; its virtual functions are
    bound to ``vfio-pci`` by the kernel itself. Their hardware may need the driver of the physical function to set them
    up before they do anything. Needs root, and ``vfio_pci.enable_sriov=1``.

    Args:
        address: of the physical function.
        count: how many.
        timeout: seconds until all have a driver and their nodes.

    Raises:
        ArgumentError: no such function, or it can't have that many.
        UnsupportedError: it is no physical function, or not bound to ``vfio-pci``, or ``enable_sriov`` is off.
        BusyError: some are switched on already; their number can't be changed while they are.
        BindError: one did not get its driver or node in time. None is left.
        VfioOSError: sysfs can't be written, or the kernel has no room for them (ENOMEM, EBUSY).
        DeadlineError: the kernel does not come back.
    """
    physical = sysfs.pci_function(address)
    _check(physical, count)
    deadline = time.monotonic() + timeout
    try:
        _set_number(physical, count, deadline)
    except VfioOSError as error:
        if error.errno == errno.ENOENT:
            raise UnsupportedError(_not_enabled()) from error
        raise
    try:
        return VirtualFunctions(physical, _usable(physical, count, deadline))
    except BaseException as error:
        try:
            _set_number(physical, 0, time.monotonic() + _ROLLBACK)
        except VfioError as failure:
            error.add_note(f"the virtual functions of {physical.name} are still there: {failure}")
        raise


def _check(physical: sysfs.PciFunction, count: int) -> None:
    total = physical.total_vfs
    if total == 0:
        raise UnsupportedError(f"{physical.name} is no physical function: it has no SR-IOV capability")
    if not 1 <= count <= total:
        raise ArgumentError(f"{count} virtual functions of {physical.name}: it can have 1 to {total}")
    if physical.driver != _DRIVER:
        raise UnsupportedError(str(findings.not_bound(physical.name, physical.driver)))
    there = virtual_functions(physical)
    if there:
        raise BusyError(f"{physical.name} has {len(there)} virtual functions already; switch them off first")


def _usable(physical: sysfs.PciFunction, count: int, deadline: float) -> tuple[sysfs.PciFunction, ...]:
    while True:
        functions = virtual_functions(physical)
        missing = [f"{each.name} ({why})" for each in functions if (why := _lack(each))]
        if len(functions) == count and not missing:
            return functions
        if time.monotonic() >= deadline:
            words = ", ".join(missing) or f"{count - len(functions)} did not appear"
            raise BindError(f"virtual functions of {physical.name} can't be used: {words}")
        time.sleep(_NAP)


def _lack(function: sysfs.PciFunction) -> str:
    """Tell what keeps a virtual function from being opened; empty when nothing does."""
    if function.driver != _DRIVER:
        return f"driver: {function.driver or 'none'}"
    # Of a group's node and one of its own, one is enough.
    expected = expected_nodes(function)
    if not any(nodes.is_node(path, number) for path, number in expected):
        return f"no node {expected[0][0]}" if expected else "no node"
    return ""


def _set_number(physical: sysfs.PciFunction, count: int, deadline: float) -> None:
    writes.write(physical.path / "sriov_numvfs", str(count), deadline)


def _not_enabled() -> str:
    return (
        "vfio-pci makes no virtual functions unless told so: boot with vfio_pci.enable_sriov=1, or "
        "echo 1 > /sys/module/vfio_pci/parameters/enable_sriov"
    )
