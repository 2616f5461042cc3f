"""A terminal in which a command runs as for a person; what appears on it is recorded as an asciicast."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")
_WIDTH, _HEIGHT = 110, 40
_STEP = 0.1
CTRL_C = "\x03"


class Terminal:
    """Run ``vfio-user WORDS`` on a pseudo-terminal of its own, from which Ctrl-C interrupts it.

    Lifetime:
        `finish`, or the end of the ``with`` block, which kills what still runs.
    Locking:
        None; one thread uses it.
    """

    def __init__(self, record: Path, *words: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", _HEIGHT, _WIDTH, 0, 0))
        # The first terminal that a session's leader opens is the one that it is controlled by.
        shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave)]
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [*shell, sys.executable, "-m", "vfio_user.cli", *words], start_new_session=True, env=environment
        )
        # Open here until the end: while nobody has it open, the other side can't be read.
        self._slave = slave
        self._begin = time.monotonic()
        self.raw = ""
        record.parent.mkdir(parents=True, exist_ok=True)
        self._record = record.open("w")
        head = {"version": 2, "width": _WIDTH, "height": _HEIGHT, "title": f"vfio-user {' '.join(words)}"}
        self._record.write(json.dumps(head) + "\n")

    @property
    def text(self) -> str:
        """What has appeared, without colours and movements."""
        return _ESCAPES.sub("", self.raw)

    def expect(self, words: str, timeout: float = 120.0) -> None:
        """Wait until some words have appeared."""
        deadline = time.monotonic() + timeout
        while words not in self.text:
            left = deadline - time.monotonic()
            assert left > 0, f"{words!r} did not appear: {self.text}"
            assert self._read(min(left, _STEP)) or self._process.poll() is None, f"it ended first: {self.text}"

    def press(self, text: str) -> None:
        """Press some keys."""
        os.write(self._master, text.encode())

    def finish(self, timeout: float = 120.0) -> int:
        """Wait for the command's end; give its exit code."""
        deadline = time.monotonic() + timeout
        while self._process.poll() is None:
            self._read(_STEP)
            assert time.monotonic() < deadline, f"it does not end: {self.text}"
        while self._read(0.0):
            pass
        print(self.text)
        return self._process.returncode

    def _read(self, timeout: float) -> bool:
        """Take what has appeared; tell whether anything has."""
        if not select.select([self._master], [], [], timeout)[0]:
            return False
        data = os.read(self._master, 1 << 16).decode(errors="replace")
        self.raw += data
        self._record.write(json.dumps([round(time.monotonic() - self._begin, 3), "o", data]) + "\n")
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self._slave)
        self._record.close()
