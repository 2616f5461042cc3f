"""Write to sysfs with a deadline.

Unbinding can block in the kernel for as long as somebody has the device open, with the device's lock held, so that all
other writes about it block too. No signal ends such a call, not even SIGKILL. A helper process makes the writes: when
it does not come back, this process is free to say so.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

from vfio_user.errors import DeadlineError, VfioOSError

__all__ = ["outstanding", "write"]

_left: set[int] = set()

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
    # A session of its own: an interrupt from the keyboard is for this process, which then lets the write end.
    helper = subprocess.Popen(
        [sys.executable or "python3", "-I", "-S", "-c", _HELPER, str(path), text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = _wait(helper, deadline)
    except BaseException:
        _wait(helper, deadline)
        raise
    if code is None:
        raise DeadlineError(
            f"the kernel does not come back from writing {text.strip()!r} to {path}: it waits for whoever has the "
            "device open, or its driver hangs (dmesg tells)"
        )
    if code:
        raise _refused(code, path, text)


def _wait(helper: subprocess.Popen[bytes], deadline: float) -> int | None:
    try:
        return helper.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        helper.returncode = 0  # it may never end: nobody is to wait for it, nor to warn that nobody did
        _left.add(helper.pid)
        return None


def outstanding() -> bool:
    """Tell whether a write of this process that was given up is still being made; what it changes is to come yet."""
    for pid in tuple(_left):
        try:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                return True
        except ChildProcessError:
            pass  # somebody else has waited for it
        _left.discard(pid)
    return False


def _refused(code: int, path: Path, text: str) -> VfioOSError:
    hint = ""
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Run as root; in a container, sysfs must be writable (bind devices on the host, and pass the node in)"
    return VfioOSError(code, f"write {text.strip()!r} to {path}", hint)
