"""The broker's socket: made with the rights that were asked for, never in anybody's way, or systemd's."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user.errors import ArgumentError, BusyError, VfioOSError
from vfio_user.handover.sockets import connect, listen


def test_rights_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "broker.sock"
    with listen(path, mode=0o640, gid=os.getgid()) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert listener.type == socket.SOCK_SEQPACKET
        connect(path, 1.0).close()
        with pytest.raises(BusyError, match="another broker listens"):
            listen(path)
    with listen(path) as listener:  # what the first one left is replaced
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ArgumentError, match="is no socket"):
        listen(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArgumentError, match="is no socket"):
        listen(path)
    with pytest.raises(VfioOSError, match="listen at"):
        listen(Path("/proc/nowhere/broker.sock"))


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(VfioOSError, match="Is the broker running") as caught:
        connect(tmp_path / "broker.sock", 1.0)
    assert caught.value.errno == errno.ENOENT
    listen(tmp_path / "broker.sock").close()
    with pytest.raises(VfioOSError, match="start it again") as caught:
        connect(tmp_path / "broker.sock", 1.0)
    assert caught.value.errno == errno.ECONNREFUSED


_ACTIVATED = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from vfio_user.errors import ArgumentError
from vfio_user.handover import inherited
try:
    print(inherited())
except ArgumentError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [
        (socket.SOCK_SEQPACKET, "1", "fd=3"),
        (socket.SOCK_STREAM, "1", "ListenSequentialPacket="),
        (socket.SOCK_SEQPACKET, "2", "passed 2 sockets"),
        (socket.SOCK_SEQPACKET, "x", "None"),
    ],
)
def test_socket_of_systemd(tmp_path: Path, kind: socket.SocketKind, count: str, words: str) -> None:
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        done = subprocess.run(
            [sys.executable, "-c", _ACTIVATED],
            env=os.environ | {"LISTEN_FDS": count},
            close_fds=False,
            preexec_fn=lambda: os.dup2(listener.fileno(), 3),
            capture_output=True,
            text=True,
            check=True,
        )
    assert words in done.stdout
