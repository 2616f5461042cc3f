"""Open devices: choose the back end, build the chain, hand it over whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from vfio_user.addresses import PciAddress
from vfio_user.device.base import open_devices
from vfio_user.device.ops import DeviceOps
from vfio_user.errors import ArgumentError, BusyError, UnsupportedError
from vfio_user.iommu import AddressSpace, IommuMode, explain
from vfio_user.iommu.modes import common_mode
from vfio_user.kernel import sysfs
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.together import all_or_none
from vfio_user.pci.device import PCI_OPS, PciDevice

if TYPE_CHECKING:
    from uuid import UUID

    from vfio_user.mdev.device import MdevDevice
    from vfio_user.mdev.sysfs import Mdev

__all__ = ["Devices", "open", "open_all", "open_mdev", "open_node"]

DeviceT = TypeVar("DeviceT")


class Devices(tuple[PciDevice, ...]):
    """Devices that were opened together, with one address space.

    Lifetime:
        `close()`, or the ``with`` block, closes all of them, then their address space. Closing twice does nothing.
    Locking:
        See `PciDevice`.
    """

    address_space: AddressSpace
    """What they reach of memory."""

    def close(self) -> None:
        """Close every device, then the address space; all are tried.

        Raises:
            ExceptionGroup: some could not be closed; call again for those where the message says so.
        """
        failures: list[Exception] = []
        closing: list[PciDevice | AddressSpace] = [*reversed(self), self.address_space]
        for each in closing:
            try:
                each.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("some devices could not be closed", failures)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    address: str | PciAddress,
    *,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    allow_noiommu: bool = False,
    vf_token: str | None = None,
    ops: DeviceOps = PCI_OPS,
) -> PciDevice:
    """Open a PCI device that is bound to ``vfio-pci``.

    Nothing is unbound, reset or made bus master. The device is closed by its ``with`` block or `PciDevice.close`, and
    with it the address space, if it was made here.

    Args:
        address: ``"0000:01:00.0"``.
        mode: which IOMMU back end, by name; ``"auto"`` takes iommufd where kernel and rights allow, else a container.
        address_space: share this one with other devices, instead of making one.
        allow_noiommu: accept a device without an IOMMU: nothing then protects the machine from it.
        vf_token: UUID set by the owner of the physical function; for a virtual function of a PF on ``vfio-pci``.
        ops: the device's ops table, for variant drivers.

    Raises:
        ArgumentError: no such device, or arguments that exclude each other.
        BusyError: this process has it open.
        UnsupportedError: it is not bound to ``vfio-pci``, or has no IOMMU.
        NotViableError: another device of its group is in the way; names it.
        VfioOSError: a system call failed; the message says what to do.
    """
    function = sysfs.pci_function(address)

    def make(fd: OwnedFd, space: AddressSpace, owns_space: bool) -> PciDevice:
        return PciDevice(function.address, fd, space, ops=ops, owns_space=owns_space)

    return open_node(function, make, mode, address_space, allow_noiommu, vf_token)


def open_mdev(
    uuid: str | UUID | Mdev,
    *,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    ops: DeviceOps | None = None,
) -> MdevDevice:
    """Open a mediated device; `vfio_user.mdev` finds, makes and removes them.

    It has no IOMMU of its own: the kernel pins what the device's driver asks for, and its DMA goes by the address
    space nevertheless.

    Args:
        uuid: its name, or what `MdevType.create` has given.
        mode: see `open`.
        address_space: see `open`.
        ops: the device's ops table, for variant drivers.

    Raises:
        ArgumentError: no such device, or arguments that exclude each other.
        BusyError: this process has it open.
        VfioOSError: a system call failed; the message says what to do.
    """
    # Imported here: few programs have mediated devices.
    from vfio_user.mdev.device import MDEV_OPS, MdevDevice
    from vfio_user.mdev.sysfs import mdev

    node = mdev(uuid)
    table = MDEV_OPS if ops is None else ops

    def make(fd: OwnedFd, space: AddressSpace, owns_space: bool) -> MdevDevice:
        return MdevDevice(node, fd, space, ops=table, owns_space=owns_space)

    return open_node(node, make, mode, address_space)


def open_all(
    addresses: Sequence[str | PciAddress],
    *,
    mode: IommuMode | str = "auto",
    allow_noiommu: bool = False,
    vf_token: str | Mapping[str, str] | Mapping[PciAddress, str] | None = None,
) -> Devices:
    """Open several devices with one address space, at the same time; all or none.

    The kernel may reset a device when it is opened: together that takes as long as for one.

    Args:
        addresses: ``["0000:01:00.0", "0000:01:00.1"]``.
        mode: see `open`; one for all of them.
        allow_noiommu: see `open`.
        vf_token: see `open`: one for all of them, or each by its address, for those that have one. The kernel refuses a
            token for a device that is neither a physical nor a virtual function of SR-IOV.

    Raises:
        ArgumentError: no addresses were given, or one twice, or a token for another device; otherwise as `open`, the
            first that failed.
    """
    if isinstance(addresses, str):
        raise ArgumentError(f"{addresses!r} is one address; open_all() takes a list of them, open() takes one")
    functions = [sysfs.pci_function(address) for address in addresses]
    if not functions:
        raise ArgumentError("no addresses were given")
    for name, count in Counter(function.name for function in functions).items():
        if count > 1:
            raise ArgumentError(f"{name} is given {count} times: a process opens a device once")
    tokens = _tokens(functions, vf_token)
    with ExitStack() as stack:
        space = stack.enter_context(_space(functions, mode, allow_noiommu))
        opened = all_or_none(
            [partial(_open_function, function, space, tokens.get(function.address)) for function in functions],
            lambda device: device.close(),
        )
        stack.pop_all()
    devices = Devices(opened)
    devices.address_space = space
    return devices


def _tokens(
    functions: Sequence[sysfs.PciFunction], token: str | Mapping[str, str] | Mapping[PciAddress, str] | None
) -> dict[PciAddress, str]:
    """Give each function's VF token, if it has one."""
    addresses = [function.address for function in functions]
    if token is None:
        return {}
    if not isinstance(token, Mapping):
        return dict.fromkeys(addresses, token)
    tokens = {PciAddress.parse(address): each for address, each in token.items()}
    for address in tokens.keys() - set(addresses):
        raise ArgumentError(f"a VF token is given for {address}, which is not among the devices to open")
    return tokens


def _open_function(function: sysfs.PciFunction, space: AddressSpace, vf_token: str | None) -> PciDevice:
    return PciDevice(function.address, space.attach(function, vf_token=vf_token), space)


def open_node(
    node: sysfs.VfioNode,
    make: Callable[[OwnedFd, AddressSpace, bool], DeviceT],
    mode: IommuMode | str,
    address_space: AddressSpace | None,
    allow_noiommu: bool = False,
    vf_token: str | None = None,
) -> DeviceT:
    """Open a device of any bus; ``make`` gets its file, its address space, and whether it is to close that.

    Arguments and errors are those of `open`.
    """
    if address_space is not None:
        if mode != "auto":
            raise ArgumentError("give either a mode or an address space; the space has a mode already")
        _require_closed(node)
        return make(address_space.attach(node, vf_token=vf_token), address_space, False)
    with ExitStack() as stack:
        space = stack.enter_context(_space([node], mode, allow_noiommu))
        device = make(space.attach(node, vf_token=vf_token), space, True)
        stack.pop_all()
        return device


def _space(nodes: Sequence[sysfs.VfioNode], mode: IommuMode | str, allow_noiommu: bool) -> AddressSpace:
    """Make an address space for devices that are not open yet, in a mode that suits all of them."""
    for node in nodes:
        if node.noiommu and not allow_noiommu:
            raise UnsupportedError(explain.noiommu_not_allowed(node.name))
        if node.iommu_group is None and not node.noiommu:
            raise UnsupportedError(explain.no_group(node.name))
        _require_closed(node)
    if mode == "auto":
        mode = common_mode(nodes)
    return AddressSpace(mode, allow_noiommu=allow_noiommu)


def _require_closed(node: sysfs.VfioNode) -> None:
    # The kernel's own answer depends on the way in: EBUSY from a group, EINVAL from the device's node.
    if any(vdev.name == node.name for vdev in open_devices()):
        raise BusyError(f"{node.name} is open in this process already")
