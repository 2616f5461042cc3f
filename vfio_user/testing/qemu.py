"""QEMU's command line: one machine, an emulated IOMMU, the shares, and the devices of the plan."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.testing.errors import GuestSetupError

if TYPE_CHECKING:
    from vfio_user.testing.topology import Plan

__all__ = ["IOMMUS", "Iommu", "command_line", "find"]

#: Kernel arguments of every guest. A panic or an oops ends QEMU at once (``-no-reboot``), which the runner
#: reports.
_KERNEL = (
    "console=ttyS0 panic=-1 oops=panic quiet mitigations=off nokaslr audit=0 random.trust_cpu=on "
    "no_timer_check"  # on a busy machine the timer comes late; amd-iommu's never does
)
#: Without interrupt remapping the kernel refuses devices (EPERM) unless told that this is known.
_UNSAFE = "vfio_iommu_type1.allow_unsafe_interrupts=1 iommufd.allow_unsafe_interrupts=1"


@dataclass(frozen=True, slots=True)
class Iommu:
    """One choice of ``--iommu``."""

    device: str
    """What QEMU adds; empty for none."""
    kernel: str
    """What the kernel has to be told."""
    ports: bool = True
    """Whether DMA works behind root ports."""


IOMMUS: dict[str, Iommu] = {
    "intel": Iommu("intel-iommu,intremap=on,caching-mode=on", "intel_iommu=on"),
    # Behind a root port DMA through this one reads zeros, without an error.
    "amd": Iommu("amd-iommu", _UNSAFE, ports=False),
    "virtio": Iommu("virtio-iommu-pci,bus=pcie.0,addr=0x1", _UNSAFE),
    "none": Iommu("", "vfio.enable_unsafe_noiommu_mode=1"),
}


def find() -> str:
    """Return the path of QEMU."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise GuestSetupError("qemu-system-x86_64 is not installed; install the package qemu-system-x86")
    return path


def command_line(
    *,
    qemu: str,
    kernel: Path,
    initramfs: Path,
    plan: Plan,
    iommu: str,
    memory: int,
    cpus: int,
    accel: str,
    append: str,
    output: Path,
    scratch: Path,
) -> list[str]:
    """Return the command that runs the guest.

    Args:
        qemu: the program.
        kernel: the bzImage.
        initramfs: the archive of `vfio_user.testing.initramfs`.
        plan: the devices.
        iommu: a key of `IOMMUS`.
        memory: bytes.
        cpus: number of processors.
        accel: ``tcg`` or ``kvm``.
        append: kernel arguments after the runner's own.
        output: folder that the guest may write to.
        scratch: folder for console, monitor socket and disks, which the guest does not see.
    """
    chosen = IOMMUS[iommu]
    return [
        *_guarded(),
        qemu,
        *("-machine", "q35,kernel-irqchip=split" if accel == "kvm" or iommu == "intel" else "q35"),
        # All processors in one thread: with one each, an MMIO access meets a memory map that another processor is
        # replacing, and QEMU ends by an assertion (iotlb_to_section). It also leaves the machine's other processors
        # alone.
        *("-accel", "tcg,thread=single" if accel == "tcg" else accel),
        *("-cpu", "max" if accel == "tcg" else "host"),
        *("-smp", str(cpus), "-m", f"{memory >> 20}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{_escaped(scratch / 'console')}"),
        *("-qmp", f"unix:{_escaped(scratch / 'qmp')},server=on,wait=off"),
        *(("-device", chosen.device) if chosen.device else ()),
        *_share("host", Path("/"), "readonly=on,multidevs=remap", 0x2),
        *_share("output", output, "multidevs=remap", 0x3),
        *plan.arguments,
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", f"{_KERNEL} {chosen.kernel} {append}".strip()),
    ]


def _guarded() -> tuple[str, ...]:
    """Return a prefix that ends QEMU when the runner dies, however it dies."""
    return ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()


def _share(tag: str, path: Path, options: str, slot: int) -> tuple[str, ...]:
    return (
        "-fsdev",
        f"local,id={tag},path={_escaped(path)},security_model=none,{options}",
        "-device",
        f"virtio-9p-pci,fsdev={tag},mount_tag={tag},bus=pcie.0,addr={slot:#x}",
    )


def _escaped(path: Path) -> str:
    """Return `path` for QEMU's option syntax, where a comma ends a value."""
    return str(path).replace(",", ",,")
