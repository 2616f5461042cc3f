"""Say why the way to a device is barred, and what opens it. Text only: nothing here changes anything."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Sequence

from vfio_user import findings
from vfio_user.errors import VfioOSError
from vfio_user.kernel import sysfs
from vfio_user.kernel.fd import OwnedFd

__all__ = [
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
    "no_dirty_log",
    "no_group",
    "no_new_addresses",
    "no_such_device",
    "noiommu_not_allowed",
    "not_viable",
    "open_node",
    "set_container",
    "set_iommu",
    "wrong_mode",
]


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
        return findings.no_vfio().advice
    if code in (errno.EACCES, errno.EPERM):
        return findings.node_not_ours("/dev/vfio/vfio", shared=True).advice
    return ""


def iommufd_open(code: int) -> str:
    """Explain a failed open of ``/dev/iommu``."""
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return findings.no_iommufd().advice
    if code in (errno.EACCES, errno.EPERM):
        return findings.node_not_ours("/dev/iommu", shared=True).advice
    return ""


def cdev_open(code: int, path: str) -> str:
    """Explain a failed open of a device's own node."""
    if code == errno.EACCES:
        return findings.node_not_ours(path).advice
    if code == errno.EPERM:
        return "A device without an IOMMU needs CAP_SYS_RAWIO"
    return ""


def no_cdev(node: sysfs.VfioNode) -> str:
    """Explain a device that has no node of its own."""
    if node.vfio_device is None:
        return str(findings.not_bound(node.name, node.driver))
    return str(findings.no_cdev(node.name))


def device_bind(code: int, with_token: bool) -> str:
    """Explain a failed ``VFIO_DEVICE_BIND_IOMMUFD``."""
    if code == errno.EACCES:
        return findings.token_needed().advice
    if code == errno.EBUSY:
        return "The device is open through its group, or another device of its group is owned by somebody else"
    if code == errno.EPERM:
        return findings.interrupts_not_remapped("iommufd").advice
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
    names = ", ".join(sysfs.group(number).member_names)
    if not names:
        return f"There is no IOMMU group {number} (any more)"
    if code == errno.ENOENT:
        if members and not any(member.driver and "vfio" in member.driver for member in members):
            advice = findings.bind_advice(str(members[0].address))
            return f"No device of group {number} ({names}) is bound to vfio-pci. Bind it: {advice}"
        return findings.node_missing(path).advice
    if code in (errno.EACCES, errno.EPERM):
        return findings.node_not_ours(path).advice
    if code == errno.EBUSY:
        text = str(findings.open_elsewhere(names, number))
        return text[0].upper() + text[1:]
    return ""


def no_group(address: str) -> str:
    """Explain why a device has no IOMMU group."""
    return str(findings.no_group(address) if sysfs.groups() else findings.no_iommu(address))


def noiommu_not_allowed(address: str) -> str:
    """Explain that a noiommu group is used by name only."""
    return str(findings.noiommu(address))


def no_choice() -> str:
    """Explain that addresses are what they are for a device in a noiommu group."""
    return "there is no IOMMU that would translate: a noiommu device reaches memory at its physical address, no other"


def no_dirty_log(mode: str) -> str:
    """Explain that without an IOMMU nobody sees what devices write to."""
    return f"mode {mode} can't tell what devices write to: {no_choice()}"


def no_new_addresses(mode: str) -> str:
    """Explain that only containers of the type1 kind let mapped memory change its address."""
    return (
        f"mode {mode} can't change the addresses of mapped memory (VFIO_UPDATE_VADDR); type1 and type1v2 can, and "
        "iommufd needs no address for memory files: see Iommufd.change_process"
    )


def wrong_mode(name: str, mode: str, noiommu: bool) -> str:
    """Explain that a device with an IOMMU and a mode without one, or the other way round, don't go together."""
    if noiommu:
        return f"{name} has no IOMMU, and mode {mode} needs one; the modes without are noiommu and noiommu-iommufd"
    return f"{name} has an IOMMU, and mode {mode} would go round it; use another mode"


def not_viable(number: int, culprits: Sequence[tuple[str, str]]) -> str:
    """Explain which devices keep a group from being viable."""
    return str(findings.not_viable(number, culprits))


def no_such_device(name: str, number: int) -> str:
    """Explain a device that its group does not give."""
    member = next((each for each in sysfs.group(number).members if each.name == name), None)
    if member is not None and "vfio" not in (member.driver or ""):
        return str(findings.not_bound(name, member.driver))
    return f"group {number} has no device {name} (any more)"


def device_open(code: int, with_token: bool) -> str:
    """Explain a failed ``VFIO_GROUP_GET_DEVICE_FD``."""
    if code == errno.EACCES:
        return findings.token_needed().advice
    if code == errno.EBUSY:
        return "The device is open already, through its group or its own node"
    if code == errno.EPERM:  # of iommufd's stand-in for a container, which binds the device only now
        return findings.interrupts_not_remapped("iommufd").advice
    if code == errno.EINVAL and with_token:
        return "It takes no token: only a physical function, and a virtual one whose physical one vfio-pci holds, do"
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
        return findings.interrupts_not_remapped("vfio_iommu_type1").advice
    if code == errno.ENODEV:
        return "The module of this IOMMU type is not loaded: modprobe vfio_iommu_type1"
    return ""


def map_failed(code: int, size: int, dma_avail: int | None) -> str:
    """Explain a failed map."""
    if code == errno.ENOMEM:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
        return findings.memlock(limit, size).advice
    if code == errno.ENOSPC:
        return findings.mappings_exhausted(dma_avail).advice
    if code == errno.EFAULT:
        return "The memory can't be pinned: not mapped, read-only, or device memory that is switched off now"
    return ""
