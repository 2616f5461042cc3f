"""QEMU's command line: one machine, an emulated IOMMU, the shares, and the devices of the plan."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.testing.errors import GuestSetupError
from vfio_user.testing.machines import Machine

if TYPE_CHECKING:
    from vfio_user.testing.topology import Plan

__all__ = ["Share", "command_line", "find", "model"]

#: Kernel arguments of every guest. A panic or an oops ends QEMU at once (``-no-reboot``), which the runner
#: reports.
_KERNEL = "panic=-1 oops=panic quiet audit=0 random.trust_cpu=on"


@dataclass(frozen=True, slots=True)
class Share:
    """A folder of this machine that the guest mounts by 9p."""

    tag: str
    """What it mounts."""
    path: Path
    """The folder."""
    writable: bool = False
    """Whether the guest may write there."""


def find(machine: Machine) -> str:
    """Return the path of QEMU.

    Raises:
        GuestSetupError: it is not installed; the message names the packages to install.
    """
    path = shutil.which(machine.qemu)
    if path is None:
        raise GuestSetupError(f"{machine.qemu} is not installed; install the packages: {machine.packages}")
    return path


def command_line(
    *,
    machine: Machine,
    qemu: str,
    kernel: Path,
    initramfs: Path,
    plan: Plan,
    iommu: str,
    memory: int,
    cpus: int,
    accel: str,
    append: str,
    shares: Sequence[Share],
    scratch: Path,
) -> list[str]:
    """Return the command that runs the guest.

    Args:
        machine: what QEMU emulates.
        qemu: the program.
        kernel: the image.
        initramfs: the archive of `vfio_user.testing.initramfs`.
        plan: the devices.
        iommu: a key of `Machine.iommus`.
        memory: bytes.
        cpus: number of processors.
        accel: ``tcg`` or ``kvm``.
        append: kernel arguments after the runner's own.
        shares: folders that the guest sees.
        scratch: folder for console, monitor socket and disks, which the guest does not see.
    """
    chosen = machine.iommus[iommu]
    console = _escaped(scratch / "console")
    return [
        *_guarded(),
        *(qemu, "-machine", model(machine, iommu, accel)),
        # All processors in one thread: with one each, an MMIO access meets a memory map that another processor is
        # replacing, and QEMU ends by an assertion (iotlb_to_section). It also leaves this machine's other ones alone.
        *("-accel", "tcg,thread=single" if accel == "tcg" else accel),
        *("-cpu", machine.cpu if accel == "tcg" else "host"),
        *("-smp", str(cpus), "-m", f"{memory >> 20}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *(option.format(console=console) for option in machine.options),
        *("-qmp", f"unix:{_escaped(scratch / 'qmp')},server=on,wait=off"),
        *(("-device", chosen.device) if chosen.device else ()),
        *(word for number, share in enumerate(shares, 0x2) for word in _share(machine, share, number)),
        *plan.arguments,
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", " ".join(part for part in (machine.kernel, _KERNEL, chosen.kernel, append) if part)),
    ]


def model(machine: Machine, iommu: str, accel: str) -> str:
    """Return the value of ``-machine``."""
    parts = (machine.model, machine.iommus[iommu].machine, machine.kvm if accel == "kvm" else "")
    return ",".join(dict.fromkeys(part for part in parts if part))


def _guarded() -> tuple[str, ...]:
    """Return a prefix that ends QEMU when the runner dies, however it dies."""
    return ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()


def _share(machine: Machine, share: Share, number: int) -> tuple[str, ...]:
    readonly = "" if share.writable else "readonly=on,"
    return (
        "-fsdev",
        f"local,id={share.tag},path={_escaped(share.path)},security_model=none,{readonly}multidevs=remap",
        "-device",
        f"{machine.share.format(number=number)},fsdev={share.tag},mount_tag={share.tag}",
    )


def _escaped(path: Path) -> str:
    """Return `path` for QEMU's option syntax, where a comma ends a value."""
    return str(path).replace(",", ",,")
