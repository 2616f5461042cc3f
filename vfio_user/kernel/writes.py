"""Write to sysfs with a deadline.

Unbinding can block in the kernel for as long as somebody has the device open, with the device's lock held, so that all
other writes about it block too. No signal ends such a call, not even SIGKILL. A helper process makes the writes: when
it does not come back, this process is free to say so.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

from vfio_user.errors import DeadlineError, VfioOSError

__all__ = ["outstanding", "write"]

_GRACE = 5.0  # seconds that who interrupts a write waits for it, so that it is known what it did

# Its exit code is the errno: what was written either arrived whole or not at all.
_HELPER = """
import posix, sys
try:
    posix.write(posix.open(sys.argv[1], posix.O_WRONLY), sys.argv[2].encode())
except OSError as error:
    posix._exit(error.errno or 255)
"""


def write(path: Path, text: str, deadline: float) -> None:
    """Write an attribute of a device.

    Args:
        path: of the attribute.
        text: what to write.
        deadline: on the clock of `time.monotonic`.

    Raises:
        DeadlineError: the kernel has not answered; it goes on with the write as soon as it can.
        VfioOSError: the kernel refused; errno is kept.
    """
    made = _Write(path, text)
    _begun.add(made)  # first, so that no interrupt comes between
    try:
        made.start()
        made.ended.wait(max(0.0, deadline - time.monotonic()))
    except BaseException:
        made.ended.wait(max(0.0, min(deadline - time.monotonic(), _GRACE)))
        raise
    if not made.ended.is_set():
        raise DeadlineError(
            f"the kernel does not come back from writing {text.strip()!r} to {path}: it waits for whoever has the "
            "device open, or its driver hangs (dmesg tells)"
        )
    _begun.discard(made)
    if made.error is not None:
        raise VfioOSError(made.error.errno or 0, "start a process that writes to sysfs") from made.error
    if made.code:
        raise _refused(made.code, path, text)


def outstanding() -> bool:
    """Tell whether a write of this process that was given up is still being made; what it changes is to come yet."""
    _begun.difference_update([each for each in tuple(_begun) if each.ended.is_set()])
    return bool(_begun)


class _Write(threading.Thread):
    """One write, in a thread because interrupts are for the main one: the process is never started and then lost."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(name="sysfs write", daemon=True)  # it may never end
        self.ended = threading.Event()
        self.code = 0
        self.error: OSError | None = None
        self._words = [sys.executable or "python3", "-I", "-S", "-c", _HELPER, str(path), text]

    def run(self) -> None:
        quiet = subprocess.DEVNULL
        try:
            # A session of its own: an interrupt from the keyboard is for this process, which then lets the write end.
            self.code = subprocess.call(self._words, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        except OSError as error:
            self.error = error
        finally:
            self.ended.set()


_begun: set[_Write] = set()


def _refused(code: int, path: Path, text: str) -> VfioOSError:
    hint = ""
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Run as root; in a container, sysfs must be writable (bind devices on the host, and pass the node in)"
    return VfioOSError(code, f"write {text.strip()!r} to {path}", hint)
