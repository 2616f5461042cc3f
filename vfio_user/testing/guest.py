"""Run a command in a QEMU guest with emulated devices and an emulated IOMMU.

The guest sees this machine's files at the same paths, read-only (what it writes there stays in its memory and
is gone afterwards), so the command is found as it would be here. One folder, the output folder, is shared for
writing. A run has a result when the guest left the command's exit code there. QEMU's own exit code says
nothing: it is 0 after a panic too.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vfio_user.testing import initramfs, kernels, qemu
from vfio_user.testing.errors import GuestCrashedError, GuestSetupError, GuestSpecError, GuestTimeoutError
from vfio_user.testing.monitor import Monitor, Requests
from vfio_user.testing.topology import Plan, parse_size, plan

__all__ = ["Guest", "Result", "run"]

#: Where the output folder is in the guest; `main.sh` knows it too.
OUTPUT_IN_GUEST = "/run/vfio-user/output"
#: Variables of the caller that the command in the guest gets.
PASSED = ("CI", "COLUMNS", "FORCE_COLOR", "HOME", "LANG", "LINES", "NO_COLOR", "PATH", "TERM", "VIRTUAL_ENV")

_BOOT = 150.0  # seconds; the slowest boot seen took 23
_POLL = 0.05  # seconds between looks at the guest
_POWER_OFF = 10.0  # seconds from the result to the end of QEMU


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Description of a guest.

    Lifetime:
        a value; each `run` boots it anew.
    """

    kernel: str = "stock"
    """What `vfio_user.testing.kernels.resolve` takes."""
    devices: tuple[str, ...] = ()
    """Slots, as `vfio_user.testing.topology.parse_slot` takes them."""
    iommu: str = "intel"
    """A key of `vfio_user.testing.qemu.IOMMUS`."""
    memory: str = "2G"
    """Size of the guest's memory."""
    cpus: int = 2
    """Number of processors."""
    accel: str = "tcg"
    """``tcg`` (emulation) or ``kvm``."""
    append: str = ""
    """Kernel arguments to add."""
    bind: bool = True
    """Bind all devices to vfio-pci before the command."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a guest left."""

    returncode: int
    """Exit code of the command; 128 + n when signal n ended it."""
    stdout: str
    """What the command wrote to its standard output; what is not UTF-8 is replaced."""
    stderr: str
    """The same for standard error."""
    console: str
    """The guest's serial console."""
    kernel_log: str
    """What ``dmesg`` said after the command."""
    seconds: float
    """From the start of QEMU to its end."""
    boot_seconds: float
    """From the start of QEMU to the start of the command."""


def run(
    guest: Guest,
    command: Sequence[str],
    *,
    timeout: float = 300.0,
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
    if timeout <= 0:
        raise GuestSpecError(f"timeout must be more than 0 seconds, not {timeout}")
    kernel = kernels.resolve(guest.kernel)
    archive = initramfs.build(kernel, kernels.busybox())
    program = qemu.find()
    with tempfile.TemporaryDirectory(prefix="vfio-user-") as scratch_name:
        scratch = Path(scratch_name)
        shared = (output or scratch / "output").resolve()
        layout = plan(guest.devices, scratch)
        control = _prepare(shared, guest, layout, kernel, command, cwd or Path.cwd(), environment or {})
        for path, size in layout.files:
            with open(path, "wb") as disk:
                disk.truncate(size)
        line = qemu.command_line(
            qemu=program,
            kernel=kernel.image,
            initramfs=archive,
            plan=layout,
            iommu=guest.iommu,
            memory=parse_size(guest.memory),
            cpus=guest.cpus,
            accel=guest.accel,
            append=guest.append,
            output=shared,
            scratch=scratch,
        )
        return _Run(line, control, scratch, timeout, (stdout, stderr)).result()


def _prepare(
    shared: Path,
    guest: Guest,
    layout: Plan,
    kernel: kernels.Kernel,
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
) -> Path:
    """Write what `main.sh` reads; return the folder of the runner's own files."""
    control = shared / "guest"
    (control / "requests").mkdir(parents=True, exist_ok=True)
    for path in (*control.glob("requests/*"), *(path for path in control.iterdir() if path.is_file())):
        path.unlink()  # of an earlier run: its exit code must not be taken for this one's
    modules = shlex.quote(str(kernel.modules)) if kernel.modules else ""
    (control / "settings.sh").write_text(f"BIND={int(guest.bind)}\nMODULES={modules}\n")
    rows = (f"{item.name} {item.kind} {item.port} {item.function}\n" for item in layout.placed)
    (control / "devices").write_text("".join(rows))
    for name in ("stdout", "stderr"):
        (control / name).touch()
    variables = {name: os.environ[name] for name in PASSED if name in os.environ} | {
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
    return control


class _Tail:
    """One output file of the guest: what is new in it goes on to a stream."""

    def __init__(self, path: Path, stream: BinaryIO | None) -> None:
        self._file = path.open("rb")
        self._stream = stream
        self._seen: list[bytes] = []

    def forward(self) -> None:
        data = self._file.read()
        if not data:
            return
        self._seen.append(data)
        if self._stream is not None:
            self._stream.write(data)
            self._stream.flush()

    def text(self) -> str:
        self.forward()
        self._file.close()
        return b"".join(self._seen).decode(errors="replace")


class _Run:
    """One boot of a guest, watched until it has a result or its deadline."""

    def __init__(
        self,
        line: list[str],
        control: Path,
        scratch: Path,
        timeout: float,
        streams: tuple[BinaryIO | None, BinaryIO | None],
    ) -> None:
        self._line = line
        self._control = control
        self._scratch = scratch
        self._timeout = timeout
        self._tails = [
            _Tail(control / name, stream) for name, stream in zip(("stdout", "stderr"), streams, strict=True)
        ]
        self._boot_seconds: float | None = None

    def result(self) -> Result:
        """Run QEMU to its end."""
        errors = self._scratch / "qemu.log"
        self._begin = time.monotonic()
        with errors.open("wb") as log:
            self._process = subprocess.Popen(
                self._line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            with Monitor(self._scratch / "qmp") as monitor:
                self._watch(Requests(self._control / "requests", monitor))
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._keep_console()
        return self._finished(errors.read_text(errors="replace").strip())

    def _watch(self, requests: Requests) -> None:
        while self._process.poll() is None:
            for tail in self._tails:
                tail.forward()
            requests.answer()
            elapsed = time.monotonic() - self._begin
            if self._boot_seconds is None and (self._control / "started").exists():
                self._boot_seconds = elapsed
            if (self._control / "rc").exists():
                self._await_power_off()
                return
            if elapsed > self._timeout:
                raise self._hang(f"the guest did not end within {self._timeout:g} s and was stopped")
            if self._boot_seconds is None and elapsed > _BOOT:
                raise self._hang(f"the guest did not boot within {_BOOT:g} s and was stopped")
            time.sleep(_POLL)

    def _await_power_off(self) -> None:
        try:
            self._process.wait(_POWER_OFF)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the result is there: how the machine goes down does not matter

    def _hang(self, reason: str) -> GuestTimeoutError:
        for tail in self._tails:
            tail.forward()
        return GuestTimeoutError(reason, self._console())

    def _console(self) -> str:
        path = self._scratch / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def _keep_console(self) -> None:
        (self._control / "console").write_text(self._console())

    def _finished(self, errors: str) -> Result:
        seconds = time.monotonic() - self._begin
        stdout, stderr = (tail.text() for tail in self._tails)
        console = self._console()
        try:
            returncode = int((self._control / "rc").read_text())
        except (OSError, ValueError):
            if self._process.returncode > 0 and not console.strip():
                raise GuestSetupError(f"QEMU did not start ({self._process.returncode}): {errors}") from None
            if self._process.returncode:
                raise GuestCrashedError(
                    f"QEMU ended with {self._process.returncode}: {errors}", console
                ) from None
            raise GuestCrashedError("the guest went down without a result", console) from None
        kernel_log = (self._control / "dmesg").read_text(errors="replace")
        return Result(returncode, stdout, stderr, console, kernel_log, seconds, self._boot_seconds or seconds)
