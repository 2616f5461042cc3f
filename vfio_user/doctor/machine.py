"""What of the machine and its kernel decides whether any device can be driven from user space."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from vfio_user import findings
from vfio_user.binding import files
from vfio_user.binding.files import entries, text
from vfio_user.findings import Finding, Severity
from vfio_user.kernel import sysfs

__all__ = ["machine_findings", "node_finding"]

_TABLES = {"DMAR": "intel_iommu=on", "IVRS": "amd_iommu=on", "IORT": "iommu.passthrough=0", "VIOT": ""}
_OFF = frozenset({"intel_iommu=off", "amd_iommu=off", "iommu=off", "iommu=pt,off"})


def machine_findings() -> Iterator[Finding]:
    """Look at VFIO's modules and nodes, the IOMMU, and the remapping of interrupts."""
    yield from _vfio()
    yield from _iommu()
    if sysfs.groups() and platform.machine() in ("x86_64", "i686"):
        yield from _interrupts()


def node_finding(path: Path, *, shared: bool = False) -> Finding | None:
    """Say what is wrong with a node: missing, or not ours to open; `None` when nothing is."""
    if not path.exists():
        return findings.node_missing(str(path))
    if not os.access(path, os.R_OK | os.W_OK):
        return findings.node_not_ours(str(path), shared=shared)
    return None


def _vfio() -> Iterator[Finding]:
    if (sysfs.SYSFS / "bus/pci/drivers/vfio-pci").is_dir():
        yield Finding("vfio-pci", Severity.OK, "the kernel has vfio-pci")
        container, iommufd = files.DEV / "vfio/vfio", files.DEV / "iommu"
        if not container.exists() and not iommufd.exists():
            yield findings.no_vfio()
        elif container.exists():
            yield from _one(node_finding(container, shared=True))
        if iommufd.exists():
            yield from _one(node_finding(iommufd, shared=True))
        else:
            yield findings.no_iommufd()
        return
    release = os.uname().release
    lists = [files.MODULES / release / name for name in ("modules.dep", "modules.builtin")]
    if any("/vfio-pci.ko" in text(each) for each in lists):
        yield Finding(
            "vfio-pci-not-loaded",
            Severity.WARNING,
            "vfio-pci is not loaded",
            "",
            "vfio-user bind loads it; so does",
            "modprobe vfio-pci",
        )
    else:
        yield Finding(
            "no-vfio-pci",
            Severity.ERROR,
            f"kernel {release} has no vfio-pci",
            f"It is neither loaded nor among the modules in {files.MODULES / release}.",
            "Install the kernel's modules (some distributions split them off), or a kernel with CONFIG_VFIO_PCI",
        )


def _iommu() -> Iterator[Finding]:
    groups = sysfs.groups()
    units = [each.name for each in entries(sysfs.SYSFS / "class/iommu")]
    if text(sysfs.SYSFS / "module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        yield Finding(
            "unsafe-noiommu",
            Severity.WARNING,
            "VFIO's mode without an IOMMU is switched on",
            "A device that is opened like that reaches all of memory, and the kernel is tainted.",
            "Switch it off when it is not needed",
            "echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
        )
    if groups and units:
        what = f"an IOMMU is active: {len(groups)} groups ({', '.join(units)})"
        yield Finding("iommu", Severity.OK, what)
    elif not groups:
        yield findings.no_iommu(None, _how_to_turn_on())


def _how_to_turn_on() -> str:
    offered = [name for name in _TABLES if (sysfs.SYSFS / "firmware/acpi/tables" / name).exists()]
    line = text(files.PROC / "cmdline").split()
    off = [word for word in line if word in _OFF]
    if offered and off:
        return f"The firmware offers one ({offered[0]}); take {off[0]} off the kernel command line"
    if offered:
        return (
            f"The firmware offers one ({offered[0]}), the kernel does not use it: boot with {_TABLES[offered[0]]}, and "
            "look for DMAR or AMD-Vi in dmesg"
        )
    if "hypervisor" in text(files.PROC / "cpuinfo"):
        return (
            "This is a virtual machine whose hypervisor emulates none: give it one (QEMU: -machine "
            "q35,kernel-irqchip=split -device intel-iommu,intremap=on,caching-mode=on), or, for a trusted driver only: "
            "vfio.enable_unsafe_noiommu_mode=1 and allow_noiommu=True"
        )
    return ""


def _interrupts() -> Iterator[Finding]:
    if " IR-" in text(files.PROC / "interrupts"):
        yield Finding("interrupts-remapped", Severity.OK, "the IOMMU remaps interrupts")
        return
    parameters = [
        sysfs.SYSFS / "module" / module / "parameters/allow_unsafe_interrupts"
        for module in ("vfio_iommu_type1", "iommufd")
    ]
    accepted = any(text(each) == "Y" for each in parameters)
    yield findings.interrupts_not_remapped("vfio_iommu_type1", accepted=accepted)


def _one(finding: Finding | None) -> Iterator[Finding]:
    if finding is not None:
        yield finding
