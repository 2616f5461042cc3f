"""What can bar the way to a device: what it is, why it matters, and what mends it.

Errors and ``vfio-user doctor`` tell the same thing in the same words, and the words are here. Text only: nothing here
looks at the machine or changes it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "Finding",
    "Severity",
    "bind_advice",
    "interrupts_not_remapped",
    "mappings_exhausted",
    "memlock",
    "no_cdev",
    "no_group",
    "no_iommu",
    "no_iommufd",
    "no_vfio",
    "node_missing",
    "node_not_ours",
    "noiommu",
    "not_bound",
    "not_viable",
    "open_elsewhere",
    "token_needed",
]


class Severity(enum.IntEnum):
    """How much a finding matters."""

    OK = 0
    """As it should be."""
    NOTE = 1
    """Good to know."""
    WARNING = 2
    """Works, but not all of it, or not well."""
    ERROR = 3
    """The device can't be used like this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``str()`` gives it as one paragraph."""

    key: str
    """Its name, which stays the same: ``"not-viable"``."""
    severity: Severity
    """How much it matters."""
    what: str
    """What is so, as a sentence without its full stop."""
    why: str = ""
    """Why it is so or matters, as sentences; may be empty."""
    remedy: str = ""
    """What mends it, as a sentence without its full stop; may be empty."""
    command: str = ""
    """The command that does; may be empty."""
    device: str | None = None
    """The device that it is about; `None` for the machine."""

    @property
    def advice(self) -> str:
        """Why, and what mends it: what an error says after the kernel's own words."""
        mend = ": ".join(part for part in (self.remedy, self.command) if part)
        return " ".join(part for part in (self.why, mend) if part)

    def to_json(self) -> dict[str, str | None]:
        """Give it as plain data."""
        return {
            "key": self.key,
            "severity": self.severity.name.lower(),
            "device": self.device,
            "what": self.what,
            "why": self.why,
            "remedy": self.remedy,
            "command": self.command,
        }

    def __str__(self) -> str:
        return f"{self.what}. {self.advice}" if self.advice else self.what


def bind_advice(address: str) -> str:
    """Give the command that binds a device to vfio-pci."""
    return f"vfio-user bind {address}"


# -- the kernel and the machine


def no_vfio() -> Finding:
    """Describe a kernel whose VFIO is not there."""
    return Finding(
        "no-vfio",
        Severity.ERROR,
        "there is no /dev/vfio/vfio",
        "The kernel has no VFIO, or its modules are not loaded.",
        "Load them",
        "modprobe vfio-pci vfio_iommu_type1",
    )


def no_iommufd() -> Finding:
    """Describe a kernel without iommufd."""
    return Finding(
        "no-iommufd",
        Severity.NOTE,
        "there is no /dev/iommu",
        "The kernel has no iommufd (CONFIG_IOMMUFD, Linux 6.2), or its module is not loaded.",
        "Load it, or use the modes type1v2 and type1",
        "modprobe iommufd",
    )


def no_iommu(address: str | None, how: str = "") -> Finding:
    """Describe a machine on which no IOMMU is active.

    Args:
        address: the device that it bars the way to; `None` for the machine as such.
        how: what turns it on here, where that is known.
    """
    remedy = how or (
        "Turn it on in the firmware (VT-d, AMD-Vi) and on the kernel command line (intel_iommu=on). Without "
        "protection, for a trusted driver only: vfio.enable_unsafe_noiommu_mode=1 and allow_noiommu=True"
    )
    what = "no IOMMU is active on this machine"
    return Finding(
        "no-iommu",
        Severity.ERROR,
        what if address is None else f"{address} has no IOMMU group: {what}",
        "",
        remedy,
        device=address,
    )


def no_group(address: str) -> Finding:
    """Describe a device that no IOMMU translates for, on a machine that has one."""
    return Finding(
        "no-group",
        Severity.ERROR,
        f"{address} has no IOMMU group: no IOMMU translates for its bus, though others of this machine have one",
        device=address,
    )


def noiommu(address: str) -> Finding:
    """Describe a device in a group that VFIO made up."""
    return Finding(
        "noiommu",
        Severity.WARNING,
        f"{address} is in a noiommu group: its DMA reaches all of memory, nothing protects the machine",
        "",
        "If that is what you want, pass allow_noiommu=True",
        device=address,
    )


def interrupts_not_remapped(module: str, *, accepted: bool = False) -> Finding:
    """Describe an IOMMU that does not remap interrupts.

    Args:
        module: module whose parameter accepts the risk: ``"vfio_iommu_type1"`` or ``"iommufd"``.
        accepted: the parameter is set.
    """
    return Finding(
        "interrupts-not-remapped",
        Severity.WARNING if accepted else Severity.ERROR,
        "the IOMMU does not remap interrupts",
        "Most often: the IOMMU does not remap interrupts, so a device could forge any of them.",
        "The risk is accepted, by a parameter"
        if accepted
        else "Turn interrupt remapping on in the firmware, or accept the risk",
        f"{module}.allow_unsafe_interrupts=1",
    )


# -- the device and its group


def not_bound(address: str, driver: str | None) -> Finding:
    """Describe a device that is not bound to vfio-pci."""
    return Finding(
        "not-bound",
        Severity.ERROR,
        f"{address} is not bound to vfio-pci (driver: {driver or 'none'})",
        "",
        "Bind it",
        bind_advice(address),
        device=address,
    )


def not_viable(number: int, culprits: Sequence[tuple[str, str]], address: str | None = None) -> Finding:
    """Describe a group that can't be used, with the devices in the way."""
    who = ", ".join(f"{culprit} (driver {driver})" for culprit, driver in culprits) or "a device"
    if culprits:
        remedy = "Bind it too, or take its driver away" if len(culprits) == 1 else "Bind them too, or unbind them"
        command = bind_advice(" ".join(culprit for culprit, _ in culprits))
    else:
        remedy, command = "Look for it", f"ls -l /sys/kernel/iommu_groups/{number}/devices"
    return Finding(
        "not-viable",
        Severity.ERROR,
        f"group {number} is not viable: {who} is in it and not bound to vfio-pci",
        "The IOMMU can't keep the devices of a group apart, so all must be bound to vfio-pci or to no driver.",
        remedy,
        command,
        device=address,
    )


def token_needed(address: str | None = None) -> Finding:
    """Describe a virtual function whose physical function belongs to user space."""
    return Finding(
        "token-needed",
        Severity.NOTE,
        f"{address or 'the device'} is a virtual function of a PF that vfio-pci holds",
        "A virtual function of a PF that vfio-pci holds needs that PF's token.",
        "Pass the token that the owner of the PF has set",
        "vf_token=UUID",
        device=address,
    )


def open_elsewhere(names: str, number: int, who: str = "") -> Finding:
    """Describe a group that somebody has open."""
    return Finding(
        "open-elsewhere",
        Severity.WARNING,
        f"group {number} ({names}) is open already, by "
        f"{who or 'another process, by this one, or through the nodes of its devices'}",
        "A group has one owner.",
        "Devices of one group share it",
        "vfio_user.open(..., address_space=first.address_space)",
    )


# -- nodes and limits


def node_missing(path: str) -> Finding:
    """Describe a node that the kernel has and ``/dev`` has not."""
    return Finding(
        "node-missing",
        Severity.ERROR,
        f"{path} is missing, though the kernel has it",
        "",
        "Load the modules (modprobe vfio-pci), and in a container pass the node in",
        f"--device {path}",
    )


def node_not_ours(path: str, *, shared: bool = False) -> Finding:
    """Describe a node that this user may not open.

    Args:
        path: of the node.
        shared: it is one that everybody may have, such as ``/dev/vfio/vfio``.
    """
    if shared:
        remedy, command = "Run as root, or give your user the node: it grants no device", f"chmod 0666 {path}"
    else:
        remedy, command = "Run as root, or hand the node over", f"chown $USER {path}"
    return Finding("node-not-ours", Severity.ERROR, f"this user may not open {path}", "", remedy, command)


def no_cdev(address: str) -> Finding:
    """Describe a kernel that gives devices no node of their own."""
    return Finding(
        "no-cdev",
        Severity.NOTE,
        f"the kernel gives {address} no node in /dev/vfio/devices (CONFIG_VFIO_DEVICE_CDEV, Linux 6.6)",
        "",
        "Use its group: the modes type1v2 and type1",
        device=address,
    )


def memlock(limit: str, asked: int | None = None, *, severity: Severity = Severity.ERROR) -> Finding:
    """Describe a limit on locked memory that is too low.

    Args:
        limit: the limit in words: ``"64 KiB"``.
        asked: bytes that were asked for; `None` when nothing was.
        severity: how much it matters.
    """
    were = f"; {asked >> 10} KiB were asked for" if asked is not None else ""
    return Finding(
        "memlock",
        severity,
        f"this process may pin {limit} of memory",
        f"Mapped memory is pinned and counts against RLIMIT_MEMLOCK ({limit}{were}).",
        "Raise it: ulimit -l, LimitMEMLOCK= of the unit, or CAP_IPC_LOCK",
    )


def mappings_exhausted(left: int | None) -> Finding:
    """Describe a container that takes no more mappings."""
    return Finding(
        "mappings-exhausted",
        Severity.ERROR,
        "the container takes no more mappings",
        f"The container has no mappings left (dma_avail: {left}); vfio_iommu_type1.dma_entry_limit is the limit.",
        "Map fewer, larger pieces: address_space.pool() carves small buffers out of large mappings",
    )
