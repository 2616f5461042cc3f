"""Open devices of other buses than PCI: platform, AMBA, channel I/O, AP, fsl-mc, CDX.

The arguments are those of `vfio_user.open`.
"""

from __future__ import annotations

import errno
from typing import Protocol, TypeVar
from uuid import UUID

from vfio_user.ap.device import AP_OPS, ApDevice
from vfio_user.ap.kvm import KvmVm
from vfio_user.ap.sysfs import require_ap
from vfio_user.ccw.device import CCW_OPS, CcwDevice, require_ccw
from vfio_user.cdx import CDX_OPS, CdxDevice, CdxNode
from vfio_user.device.ops import DeviceOps
from vfio_user.errors import UnsupportedError, VfioOSError
from vfio_user.fsl_mc import FSL_MC_OPS, FslMcDevice, FslMcNode
from vfio_user.iommu import AddressSpace, IommuMode
from vfio_user.kernel import sysfs
from vfio_user.kernel.busnode import BusNode
from vfio_user.kernel.fd import OwnedFd
from vfio_user.mdev.sysfs import Mdev, mdev
from vfio_user.platform.device import AMBA_OPS, PLATFORM_OPS, AmbaDevice, PlatformDevice
from vfio_user.platform.sysfs import AmbaNode, PlatformNode
from vfio_user.session import open_node

__all__ = ["open_amba", "open_ap", "open_ccw", "open_cdx", "open_fsl_mc", "open_platform"]

_NodeT = TypeVar("_NodeT", bound=sysfs.SysfsDevice)
_NodeT_contra = TypeVar("_NodeT_contra", bound=sysfs.SysfsDevice, contravariant=True)
_BusNodeT = TypeVar("_BusNodeT", bound=BusNode)
_DeviceT = TypeVar("_DeviceT")
_DeviceT_co = TypeVar("_DeviceT_co", covariant=True)


class _Make(Protocol[_NodeT_contra, _DeviceT_co]):
    """The constructor of a bus's device."""

    def __call__(
        self, node: _NodeT_contra, fd: OwnedFd, space: AddressSpace, /, *, ops: DeviceOps, owns_space: bool
    ) -> _DeviceT_co: ...


def open_platform(
    name: str,
    *,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    allow_noiommu: bool = False,
    ops: DeviceOps = PLATFORM_OPS,
) -> PlatformDevice:
    """Open a platform device that is bound to ``vfio-platform``; `vfio_user.binding.lent` binds it.

    Args:
        name: what ``/sys/bus/platform/devices`` calls it: ``"a003e00.virtio_mmio"``.
        mode: see `vfio_user.open`.
        address_space: see `vfio_user.open`.
        allow_noiommu: see `vfio_user.open`.
        ops: the device's ops table, for variant drivers.

    Raises:
        ArgumentError: no such device, or arguments that exclude each other.
        BusyError: this process has it open.
        UnsupportedError: it is not bound to the driver that VFIO has for its bus, or has no IOMMU.
        VfioOSError: a system call failed; the message says what to do.
    """
    node = _bound(PlatformNode.find(name))
    return _open(PlatformDevice, node, ops, mode, address_space, allow_noiommu)


def open_amba(
    name: str,
    *,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    allow_noiommu: bool = False,
    ops: DeviceOps = AMBA_OPS,
) -> AmbaDevice:
    """Open an AMBA device, ``"9010000.pl031"``, that is bound to ``vfio-amba``; see `open_platform`."""
    node = _bound(AmbaNode.find(name))
    return _open(AmbaDevice, node, ops, mode, address_space, allow_noiommu)


def open_fsl_mc(
    name: str,
    *,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    ops: DeviceOps = FSL_MC_OPS,
) -> FslMcDevice:
    """Open an fsl-mc object, ``"dpni.3"``, that is bound to ``vfio-fsl-mc``; see `open_platform`."""
    return _open(FslMcDevice, _bound(FslMcNode.find(name)), ops, mode, address_space)


def open_cdx(
    name: str,
    *,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    ops: DeviceOps = CDX_OPS,
) -> CdxDevice:
    """Open a CDX device, ``"cdx-00:01"``, that is bound to ``vfio-cdx``; see `open_platform`."""
    return _open(CdxDevice, _bound(CdxNode.find(name)), ops, mode, address_space)


def open_ccw(
    uuid: str | UUID | Mdev,
    *,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    ops: DeviceOps = CCW_OPS,
) -> CcwDevice:
    """Open a channel device: the mediated device that `ccw.Subchannel.create` has made; see `open_platform`.

    It has no IOMMU of its own: the kernel reads the programs and pins what they speak of.
    """
    return _open(CcwDevice, require_ccw(mdev(uuid)), ops, mode, address_space)


def open_ap(
    uuid: str | UUID | Mdev,
    *,
    vm: KvmVm | None = None,
    mode: IommuMode | str = "auto",
    address_space: AddressSpace | None = None,
    ops: DeviceOps = AP_OPS,
) -> ApDevice:
    """Open a part of the AP matrix, which `ap.create` has made, on behalf of a virtual machine; see `open_platform`.

    Args:
        uuid: its name, or what `ap.create` has given.
        vm: the virtual machine; the kernel refuses to open it without one (EINVAL).
        mode: see `vfio_user.open`.
        address_space: see `vfio_user.open`.
        ops: the device's ops table, for variant drivers.

    Raises:
        VfioOSError: the kernel refused: EINVAL without a virtual machine.
    """
    node = require_ap(mdev(uuid), vm)
    try:
        return _open(ApDevice, node, ops, mode, address_space)
    except VfioOSError as error:
        if vm is None and error.errno == errno.EINVAL:
            hint = "The kernel opens it for a virtual machine of KVM's only: give open_ap(vm=KvmVm())"
            raise VfioOSError(errno.EINVAL, f"open {node.name}", hint) from error
        raise


def _open(
    kind: _Make[_NodeT, _DeviceT],
    node: _NodeT,
    ops: DeviceOps,
    mode: IommuMode | str,
    address_space: AddressSpace | None,
    allow_noiommu: bool = False,
) -> _DeviceT:
    def make(fd: OwnedFd, space: AddressSpace, owns_space: bool) -> _DeviceT:
        return kind(node, fd, space, ops=ops, owns_space=owns_space)

    return open_node(node, make, mode, address_space, allow_noiommu)


def _bound(node: _BusNodeT) -> _BusNodeT:
    """Make sure that VFIO has a device: the command line can't bind what is not PCI."""
    driver = sysfs.VFIO_DRIVERS[node.bus]
    if "vfio" not in (node.driver or ""):
        raise UnsupportedError(
            f"{node.name} is not bound to {driver} (driver: {node.driver or 'none'}). Bind it for the length of a "
            "block: with vfio_user.binding.lent(device)"
        )
    return node
