"""Say why the way to a device is barred, and what opens it. Text only: nothing here changes anything."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Sequence

from vfio_user.errors import VfioOSError
from vfio_user.kernel import sysfs
from vfio_user.kernel.fd import OwnedFd

__all__ = [
    "bind_advice",
    "cdev_open",
    "container_open",
    "device_attach",
    "device_bind",
    "device_open",
    "group_open",
    "iommufd_open",
    "map_failed",
    "no_cdev",
    "no_choice",
    "no_group",
    "no_such_device",
    "noiommu_not_allowed",
    "not_viable",
    "open_node",
    "set_container",
    "set_iommu",
]

_UNSAFE = (
    "Most often: the IOMMU does not remap interrupts, so a device could forge any of them. Turn interrupt remapping on "
    "in the firmware, or accept the risk: {}.allow_unsafe_interrupts=1"
)


def open_node(path: str, hint: Callable[[int], str]) -> OwnedFd:
    """Open a character device read-write; ``hint`` turns the errno into advice."""
    try:
        return OwnedFd(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)
    except OSError as error:
        code = error.errno or 0
        raise VfioOSError(code, f"open {path}", hint(code)) from error


def container_open(code: int) -> str:
    """Explain a failed open of ``/dev/vfio/vfio``."""
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "The kernel has no VFIO, or its modules are not loaded: modprobe vfio-pci vfio_iommu_type1"
    if code in (errno.EACCES, errno.EPERM):
        return "Run as root, or give your user the node: chmod 0666 /dev/vfio/vfio is safe, it grants no device"
    return ""


def iommufd_open(code: int) -> str:
    """Explain a failed open of ``/dev/iommu``."""
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "The kernel has no iommufd (CONFIG_IOMMUFD), or its module is not loaded: modprobe iommufd"
    if code in (errno.EACCES, errno.EPERM):
        return "Run as root, or give your user the node: chmod 0666 /dev/iommu is safe, it grants no device"
    return ""


def cdev_open(code: int, path: str) -> str:
    """Explain a failed open of a device's own node."""
    if code == errno.EACCES:
        return f"Run as root, or hand the node over: chown $USER {path}"
    if code == errno.EPERM:
        return "A device without an IOMMU needs CAP_SYS_RAWIO"
    return ""


def no_cdev(name: str, driver: str | None) -> str:
    """Explain a device that has no node of its own."""
    if driver is None or "vfio" not in driver:
        return f"{name} is not bound to vfio-pci (driver: {driver or 'none'}). {bind_advice(name)}"
    return f"the kernel gives {name} no node in /dev/vfio/devices (CONFIG_VFIO_DEVICE_CDEV, Linux 6.6); use its group"


def device_bind(code: int, with_token: bool) -> str:
    """Explain a failed ``VFIO_DEVICE_BIND_IOMMUFD``."""
    if code == errno.EACCES:
        return "A virtual function of a PF that vfio-pci holds needs that PF's token: vf_token=UUID"
    if code == errno.EBUSY:
        return "The device is open through its group, or another device of its group is owned by somebody else"
    if code == errno.EPERM:
        return _UNSAFE.format("iommufd")
    if code == errno.EINVAL and with_token:
        return "The device is open already, or this kernel takes no token here, or the device needs none"
    if code == errno.EINVAL:
        return "Most often: the device is open already through its own node, by another process or by this one"
    return ""


def device_attach(code: int, pasid: int | None) -> str:
    """Explain a failed ``VFIO_DEVICE_ATTACH_IOMMUFD_PT``."""
    if code == errno.EINVAL and pasid is not None:
        return f"The device has no PASID {pasid}, or the page tables were not made for PASIDs (HwptAllocFlags.PASID)"
    if code == errno.EBUSY:
        return "Another device of its group is attached to something else: detach that one, or attach both to the same"
    if code == errno.EADDRINUSE:
        return "Something is mapped at an IOVA that this device can't have (its MSI window, a reserved region)"
    if code == errno.EINVAL:
        return "The page tables are of another IOMMU, or of a kind that the device can't use"
    if code == errno.ENOENT:
        return "There is no such address space or page table in the iommufd that the device is bound to"
    return ""


def group_open(code: int, number: int, path: str) -> str:
    """Explain a failed open of a group's node."""
    members = sysfs.group(number).members
    if not members:
        return f"There is no IOMMU group {number} with a PCI device (any more)"
    names = ", ".join(str(member.address) for member in members)
    if code == errno.ENOENT:
        if not any(member.driver and "vfio" in member.driver for member in members):
            advice = bind_advice(str(members[0].address))
            return f"No device of group {number} ({names}) is bound to vfio-pci. {advice}"
        return "Load the modules (modprobe vfio-pci), and in a container pass the node in"
    if code in (errno.EACCES, errno.EPERM):
        return f"Run as root, or hand the node over: chown $USER {path}"
    if code == errno.EBUSY:
        return (
            f"Group {number} ({names}) is open already, by another process, by this one, or through the devices' "
            "own nodes; a group has one owner. Devices of one group share it: "
            "vfio_user.open(..., address_space=first.address_space)"
        )
    return ""


def no_group(address: str) -> str:
    """Explain why a device has no IOMMU group."""
    if not sysfs.groups():
        return (
            f"{address} has no IOMMU group: no IOMMU is active on this machine. Turn it on in the firmware (VT-d, "
            "AMD-Vi) and on the kernel command line (intel_iommu=on). Without protection, for a trusted driver only: "
            "vfio.enable_unsafe_noiommu_mode=1 and allow_noiommu=True"
        )
    return f"{address} has no IOMMU group: no IOMMU translates for its bus, though others of this machine have one"


def noiommu_not_allowed(address: str) -> str:
    """Explain that a noiommu group is used by name only."""
    return (
        f"{address} is in a noiommu group: its DMA reaches all of memory, nothing protects the machine. "
        "If that is what you want, pass allow_noiommu=True"
    )


def no_choice() -> str:
    """Explain that addresses are what they are for a device in a noiommu group."""
    return "there is no IOMMU that would translate: a noiommu device reaches memory at its physical address, no other"


def not_viable(number: int, culprits: Sequence[tuple[str, str]]) -> str:
    """Explain which devices keep a group from being viable."""
    who = ", ".join(f"{address} (driver {driver})" for address, driver in culprits) or "a device"
    advice = (
        bind_advice(culprits[0][0]) if culprits else f"Look for it: ls -l /sys/kernel/iommu_groups/{number}/devices"
    )
    return (
        f"group {number} is not viable: {who} is in it and not bound to vfio-pci. The IOMMU can't keep the devices of "
        f"a group apart, so all must be bound to vfio-pci or to no driver. {advice}"
    )


def no_such_device(name: str, number: int) -> str:
    """Explain a device that its group does not give."""
    driver = next((m.driver for m in sysfs.group(number).members if str(m.address) == name), None)
    if driver is None or "vfio" not in driver:
        return f"{name} is not bound to vfio-pci (driver: {driver or 'none'}). {bind_advice(name)}"
    return f"group {number} has no device {name}"


def device_open(code: int) -> str:
    """Explain a failed ``VFIO_GROUP_GET_DEVICE_FD``."""
    if code == errno.EACCES:
        return "A virtual function of a PF that vfio-pci holds needs that PF's token: vf_token=UUID"
    if code == errno.EBUSY:
        return "The device is open already, through its group or its own node"
    if code == errno.EPERM:  # of iommufd's stand-in for a container, which binds the device only now
        return _UNSAFE.format("iommufd")
    return ""


def set_container(code: int) -> str:
    """Explain a failed ``VFIO_GROUP_SET_CONTAINER``."""
    if code == errno.EPERM:
        return "A noiommu group needs CAP_SYS_RAWIO, and vfio.enable_unsafe_noiommu_mode=1"
    if code == errno.EINVAL:
        return "The group is in a container already, or it has another kind of IOMMU than those that are in this one"
    return ""


def set_iommu(code: int) -> str:
    """Explain a failed ``VFIO_SET_IOMMU``."""
    if code == errno.EPERM:
        return _UNSAFE.format("vfio_iommu_type1")
    if code == errno.ENODEV:
        return "The module of this IOMMU type is not loaded: modprobe vfio_iommu_type1"
    return ""


def map_failed(code: int, size: int, dma_avail: int | None) -> str:
    """Explain a failed map."""
    if code == errno.ENOMEM:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
        return (
            f"Mapped memory is pinned and counts against RLIMIT_MEMLOCK ({limit}; {size >> 10} KiB were asked for). "
            "Raise it: ulimit -l, LimitMEMLOCK= of the unit, or CAP_IPC_LOCK"
        )
    if code == errno.ENOSPC:
        return (
            f"The container has no mappings left (dma_avail: {dma_avail}); vfio_iommu_type1.dma_entry_limit is the "
            "limit. Map fewer, larger pieces: address_space.pool() carves small buffers out of large mappings"
        )
    if code == errno.EFAULT:
        return "The memory can't be pinned: not mapped, read-only, or device memory that is switched off now"
    return ""


def bind_advice(address: str) -> str:
    """Give the commands that bind a device to vfio-pci."""
    path = f"/sys/bus/pci/devices/{address}"
    return (
        f"Bind it: echo vfio-pci > {path}/driver_override; [ -e {path}/driver ] && echo {address} > "
        f"{path}/driver/unbind; echo {address} > /sys/bus/pci/drivers_probe"
    )
