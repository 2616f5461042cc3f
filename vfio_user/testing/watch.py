"""Watch QEMU while it runs a guest: pass its output on, answer its requests, and judge how it ended."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vfio_user.testing.errors import GuestCrashedError, GuestSetupError, GuestTimeoutError
from vfio_user.testing.monitor import Monitor, Requests

__all__ = ["Result", "Watched"]

_BOOT = 240.0  # seconds; 4 on an idle machine, 40 where ten others wanted its two cores
_POLL = 0.05  # seconds between looks at the guest
_REPORT = 20.0  # seconds that a guest that is late has to say why
_POWER_OFF = 10.0  # seconds from the result to the end of QEMU


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


class _Tail:
    """One output file of the guest: what is new in it goes on to a stream."""

    def __init__(self, path: Path, stream: BinaryIO | None) -> None:
        self._file = path.open("rb")
        self._stream = stream
        self._seen: list[bytes] = []

    def forward(self) -> bool:
        """Pass on what is new; say whether there was something."""
        data = self._file.read()
        if not data:
            return False
        self._seen.append(data)
        if self._stream is not None:
            self._stream.write(data)
            self._stream.flush()
        return True

    def close(self) -> None:
        self.forward()
        self._file.close()

    def text(self) -> str:
        return b"".join(self._seen).decode(errors="replace")


class Watched:
    """One boot of a guest, watched until it has a result or its deadline.

    Lifetime:
        one run; QEMU is gone when `result` returns or raises.

    Locking:
        none; one thread.
    """

    def __init__(
        self,
        line: list[str],
        control: Path,
        scratch: Path,
        timeout: float,
        silence: float | None,
        streams: tuple[BinaryIO | None, BinaryIO | None],
    ) -> None:
        self._line = line
        self._control = control
        self._scratch = scratch
        self._timeout = timeout
        self._silence = silence or timeout
        self._heard = 0.0
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
            for tail in self._tails:
                tail.close()
            (self._control / "console").write_text(self._console())
        return self._finished(errors.read_text(errors="replace").strip())

    def _watch(self, requests: Requests) -> None:
        while self._process.poll() is None:
            elapsed = time.monotonic() - self._begin
            if self._boot_seconds is None and (self._control / "started").exists():
                self._boot_seconds = self._heard = elapsed
            news = [tail.forward() for tail in self._tails]  # all of them: any() would stop at the first
            if any(news) or requests.answer():
                self._heard = elapsed
            if (self._control / "rc").exists():
                self._await_power_off()
                return
            reason = self._lateness(elapsed)
            if reason:
                self._let_report()
                raise GuestTimeoutError(f"the guest {reason} and was stopped", self._console())
            time.sleep(_POLL)

    def _lateness(self, elapsed: float) -> str:
        if elapsed > self._timeout:
            return f"did not end within {self._timeout:g} s"
        if self._boot_seconds is None and elapsed > _BOOT:
            return f"did not boot within {_BOOT:g} s"
        if self._boot_seconds is not None and elapsed - self._heard > self._silence:
            return f"was silent for {self._silence:g} s"
        return ""

    def _let_report(self) -> None:
        """Let the guest write on its console what its processes wait for, if it still can."""
        if self._boot_seconds is None:
            return
        late = self._control / "late"
        late.touch()
        deadline = time.monotonic() + _REPORT
        while late.exists() and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL)

    def _await_power_off(self) -> None:
        try:
            self._process.wait(_POWER_OFF)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the result is there: how the machine goes down does not matter

    def _console(self) -> str:
        path = self._scratch / "console"
        return path.read_text(errors="replace") if path.exists() else ""

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
                raise GuestCrashedError(f"QEMU ended with {self._process.returncode}: {errors}", console) from None
            raise GuestCrashedError("the guest went down without a result", console) from None
        kernel_log = (self._control / "dmesg").read_text(errors="replace")
        return Result(returncode, stdout, stderr, console, kernel_log, seconds, self._boot_seconds or seconds)
