"""Run a command in a QEMU guest with emulated devices and an emulated IOMMU.

The guest sees this machine's files at the same paths, read-only (what it writes there stays in its memory and
is gone afterwards), so the command is found as it would be here. A guest of another architecture sees a root file
system of its own, with Python, pytest and this package, and of this machine's files those of the working directory.
One folder, the output folder, is shared for writing. A run has a result when the guest left the command's exit code
there. QEMU's own exit code says nothing: it is 0 after a panic too.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import vfio_user
from vfio_user.testing import accel, devicetree, initramfs, kernels, machines, qemu, roots
from vfio_user.testing.errors import GuestError, GuestSpecError
from vfio_user.testing.topology import Plan, parse_size, parse_slot, plan
from vfio_user.testing.watch import Result, Watched

__all__ = ["ACCELS", "OUTPUT_IN_GUEST", "PASSED", "Guest", "run"]

#: Where the output folder is in the guest; `main.sh` knows it too.
OUTPUT_IN_GUEST = "/run/vfio-user/output"
#: Choices of `Guest.accel`.
ACCELS = ("auto", "tcg", "kvm")
#: Variables of the caller that the command in the guest gets.
PASSED = ("CI", "COLUMNS", "FORCE_COLOR", "HOME", "LANG", "LINES", "NO_COLOR", "PATH", "TERM", "VIRTUAL_ENV")
#: Those of them that speak of this machine's files: a guest with a root of its own has others.
_OF_THIS_MACHINE = ("HOME", "LANG", "PATH", "VIRTUAL_ENV")

_LEAST_MEMORY = 256 << 20  # below that a distribution's kernel does not come up
_PROBE = 25.0  # seconds for a guest with KVM to come and go; where KVM works it takes 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Description of a guest.

    Lifetime:
        a value; each `run` boots it anew.
    """

    arch: str = "x86_64"
    """A key of `vfio_user.testing.machines.MACHINES`."""
    kernel: str = ""
    """What `vfio_user.testing.kernels.resolve` takes; empty for the machine's first."""
    devices: tuple[str, ...] = ()
    """Slots, as `vfio_user.testing.topology.parse_slot` takes them."""
    iommu: str = ""
    """A key of the machine's ``iommus``; empty for the first."""
    memory: str = "2G"
    """Size of the guest's memory."""
    cpus: int = 2
    """Number of processors."""
    accel: str = "auto"
    """``tcg`` (emulation), ``kvm``, or ``auto``: KVM where a guest was seen to run with it, else TCG."""
    append: str = ""
    """Kernel arguments to add."""
    bind: bool = True
    """Bind all devices to vfio-pci (or what their bus has) before the command."""

    def __post_init__(self) -> None:
        """Refuse what no guest can be.

        Raises:
            GuestSpecError: a field is out of its range; the message names it.
        """
        iommus = self.machine.iommus
        if self.iommu and self.iommu not in iommus:
            raise GuestSpecError(f"{self.arch} has no IOMMU {self.iommu!r}; take one of {', '.join(iommus)}")
        if self.accel not in ACCELS:
            raise GuestSpecError(f"there is no accel {self.accel!r}; take one of {', '.join(ACCELS)}")
        if parse_size(self.memory) < _LEAST_MEMORY:
            raise GuestSpecError(f"memory must be at least {_LEAST_MEMORY >> 20}M, not {self.memory}")
        if self.cpus < 1:
            raise GuestSpecError(f"cpus must be at least 1, not {self.cpus}")
        for slot in self.devices:
            parse_slot(slot)

    @property
    def machine(self) -> machines.Machine:
        """What QEMU emulates."""
        return machines.named(self.arch)


def run(
    guest: Guest,
    command: Sequence[str],
    *,
    timeout: float = 300.0,
    silence: float | None = None,
    output: Path | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
) -> Result:
    """Boot `guest`, run `command` in it as root, and return its result.

    Args:
        guest: what to boot.
        command: program and arguments; found and run as on this machine.
        timeout: seconds for all of it, from the start of QEMU.
        silence: seconds without output after which the command counts as hung; None allows any.
        output: folder that the guest may write to, as ``$VFIO_USER_OUTPUT``; made when missing. The runner's
            own files are in its subfolder ``guest``: stdout, stderr, console, dmesg. None: a temporary one.
        cwd: working directory; the caller's when None.
        environment: variables beyond those of `PASSED`.
        stdout: where to write the command's standard output as it comes, beyond the result.
        stderr: the same for standard error.

    Raises:
        GuestSpecError: the guest or the command can't be.
        GuestSetupError: QEMU, kernel or package can't be had, or QEMU refuses to start.
        GuestCrashedError: the guest ended without a result.
        GuestTimeoutError: it did not end in time, and was stopped.
    """
    if not command:
        raise GuestSpecError("there is no command to run in the guest")
    for name, value in (("timeout", timeout), ("silence", silence)):
        if value is not None and value <= 0:
            raise GuestSpecError(f"{name} must be more than 0 seconds, not {value}")
    machine = guest.machine
    iommu = guest.iommu or next(iter(machine.iommus))
    program = qemu.find(machine)
    kernel = kernels.resolve(guest.kernel, machine)
    archive = initramfs.build(kernel, kernels.busybox(machine))
    cwd = (cwd or Path.cwd()).resolve()
    with tempfile.TemporaryDirectory(prefix="vfio-user-") as scratch_name:
        scratch = Path(scratch_name)
        shared = (output or scratch / "output").resolve()
        layout = plan(guest.devices, scratch, ports=machine.iommus[iommu].ports, machine=machine)
        view = _foreign_view(machine, cwd) if machine.foreign else _View(Path("/"))
        control = _prepare(shared, guest, layout, kernel, view)
        _write_command(control, command, cwd, environment or {}, foreign=machine.foreign)
        for path, size in layout.files:
            with open(path, "wb") as disk:
                disk.truncate(size)
        chosen = "tcg" if machine.foreign else accel.choose(guest.accel, program, lambda: _survives_kvm(guest))
        line = qemu.command_line(
            machine=machine,
            qemu=program,
            kernel=kernel.image,
            initramfs=archive,
            plan=layout,
            iommu=iommu,
            memory=parse_size(guest.memory),
            cpus=guest.cpus,
            accel=chosen,
            append=guest.append,
            shares=view.shares(shared),
            scratch=scratch,
        )
        behind = machine.iommus[iommu].behind
        if behind:
            line += ["-dtb", str(devicetree.edited(line, behind, scratch))]
        return Watched(line, control, scratch, timeout, silence, (stdout, stderr)).result()


@dataclass(frozen=True, slots=True)
class _View:
    """What a guest sees of this machine's files."""

    root: Path
    """Its root file system."""
    folders: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    """More: a tag, the folder here, its path there."""
    settings: str = ""
    """Lines of ``settings.sh``."""

    def shares(self, output: Path) -> list[qemu.Share]:
        more = (qemu.Share(tag, path) for tag, (path, _) in self.folders.items())
        return [qemu.Share("host", self.root), qemu.Share("output", output, writable=True), *more]


def _foreign_view(machine: machines.Machine, cwd: Path) -> _View:
    """Return what a guest of another architecture sees: a root of its own, this package, the working directory."""
    package = Path(vfio_user.__file__).resolve().parent
    folders = {
        "work": (cwd, str(cwd)),
        "package": (package, roots.PACKAGE),
        "extension": (roots.extension(machine, package), roots.EXTENSION),
    }
    settings = f"EXTENSION={roots.EXTENSION}\nPACKAGE={roots.PACKAGE}\nORIGIN={shlex.quote(str(package))}\n"
    return _View(roots.root(machine), folders, settings)


def _survives_kvm(guest: Guest) -> bool:
    try:
        run(dataclasses.replace(guest, accel="kvm", devices=()), ["true"], timeout=_PROBE)
    except GuestError:
        return False
    return True


def _prepare(shared: Path, guest: Guest, layout: Plan, kernel: kernels.Kernel, view: _View) -> Path:
    """Write what `main.sh` reads; return the folder of the runner's own files."""
    control = shared / "guest"
    (control / "requests").mkdir(parents=True, exist_ok=True)
    for path in (*control.glob("requests/*"), *(path for path in control.iterdir() if path.is_file())):
        path.unlink()  # of an earlier run: its exit code must not be taken for this one's
    modules = shlex.quote(str(kernel.modules)) if kernel.modules else ""
    (control / "settings.sh").write_text(f"BIND={int(guest.bind)}\nMODULES={modules}\n{view.settings}")
    (control / "shares").write_text("".join(f"{tag} {place}\n" for tag, (_, place) in view.folders.items()))
    rows = (f"{item.name} {item.kind} {item.bus} {item.port} {item.function}\n" for item in layout.placed)
    (control / "devices").write_text("".join(rows))
    for name in ("stdout", "stderr"):
        (control / name).touch()
    return control


def _write_command(
    control: Path, command: Sequence[str], cwd: Path, environment: Mapping[str, str], *, foreign: bool
) -> None:
    """Write the script that becomes the command, with its folder and its variables."""
    variables = {
        name: os.environ[name] for name in PASSED if name in os.environ and not (foreign and name in _OF_THIS_MACHINE)
    }
    variables |= roots.ENVIRONMENT if foreign else {}
    variables |= {
        "PYTHONUNBUFFERED": "1",
        "VFIO_USER_DEVICES": "/run/vfio-user/devices.json",
        "VFIO_USER_OUTPUT": OUTPUT_IN_GUEST,
    }
    variables |= environment
    variables["PATH"] = "/run/vfio-user/bin:" + variables.get("PATH", os.defpath)
    lines = [f"cd {shlex.quote(str(cwd))} || exit 126"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f"exec {shlex.join(command)}")
    (control / "command.sh").write_text("\n".join(lines) + "\n")
