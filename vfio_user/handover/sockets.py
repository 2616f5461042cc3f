"""The socket that a broker listens at: one that systemd passes, or one of its own."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from vfio_user.errors import ArgumentError, BusyError, VfioOSError

__all__ = ["SOCKET", "connect", "inherited", "listen"]

#: Where brokers listen unless told otherwise.
SOCKET = Path("/run/vfio-user/broker.sock")

_FIRST = 3  # SD_LISTEN_FDS_START of systemd
_BACKLOG = 64


def inherited() -> socket.socket | None:
    """Take the socket that systemd listens at for this process (``sd_listen_fds(3)``); `None` when there is none.

    Raises:
        ArgumentError: it is not one for a broker: ``ListenSequentialPacket=`` makes such.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not os.environ.get("LISTEN_FDS", "").isdecimal():
        return None
    count = int(os.environ["LISTEN_FDS"])
    if count != 1:
        raise ArgumentError(f"systemd passed {count} sockets; a broker listens at one")
    os.set_inheritable(_FIRST, False)
    found = socket.socket(fileno=_FIRST)
    if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        found.close()
        raise ArgumentError("the socket of systemd is not a Unix one that keeps messages: ListenSequentialPacket=")
    return found


def listen(path: Path, *, mode: int = 0o666, gid: int | None = None) -> socket.socket:
    """Make a socket and listen at it; one that a dead broker left is replaced.

    Args:
        path: where; its folder is made.
        mode: who may connect; what they get is the policy's business.
        gid: group of the socket; by default this process's.

    Raises:
        BusyError: another broker listens there.
        ArgumentError: something else is there.
        VfioOSError: it can't be made.
    """
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        before = os.umask(0o177)  # nobody connects before mode and group are what they are to be
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise VfioOSError(error.errno or 0, f"listen at {path}", "Run as root, or give another --socket") from error
    return made


def connect(path: Path | str, timeout: float) -> socket.socket:
    """Connect to a broker.

    Args:
        path: its socket.
        timeout: seconds, for this and for each message after it.

    Raises:
        VfioOSError: nobody listens there (ENOENT, ECONNREFUSED), or it is not for us (EACCES).
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.settimeout(timeout)
        made.connect(str(path))
    except OSError as error:
        made.close()
        hint = {
            errno.ENOENT: "Is the broker running? vfio-user broker --help says how to start it",
            errno.ECONNREFUSED: "The broker has ended; start it again",
            errno.EACCES: "The socket is not for this user: its group, or the broker's --mode, decide",
        }.get(error.errno or 0, "")
        raise VfioOSError(error.errno or errno.ETIMEDOUT, f"connect to {path}", hint) from error
    return made


def _remove_stale(path: Path) -> None:
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise ArgumentError(f"{path} is there already, and is no socket")
    try:
        connect(path, 1.0).close()
    except VfioOSError as error:
        if error.errno != errno.ECONNREFUSED:
            raise
        path.unlink(missing_ok=True)
    else:
        raise BusyError(f"another broker listens at {path}")
