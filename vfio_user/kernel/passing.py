"""Messages with open files between processes: JSON and ``SCM_RIGHTS`` over a Unix socket that keeps messages whole."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vfio_user.errors import ArgumentError, ClosedError, DeadlineError, MalformedReplyError, VfioOSError
from vfio_user.kernel.fd import OwnedFd

__all__ = ["MAX_FILES", "MAX_MESSAGE", "Peer", "peer_of", "receive", "send"]

#: The kernel passes no more files in one message (SCM_MAX_FD of ``net/unix``).
MAX_FILES = 253
#: No message is longer, in bytes.
MAX_MESSAGE = 1 << 16

_SO_PEERGROUPS = 59  # of asm-generic/socket.h; the socket module lacks it
_GROUPS = 256  # more the socket module does not take


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a socket, as the kernel says: it can't be forged."""

    pid: int
    """Process that connected."""
    uid: int
    """Its user."""
    gids: frozenset[int]
    """Its groups, supplementary ones included; of a process that has more than 256, the first alone."""


def peer_of(connection: socket.socket) -> Peer:
    """Ask who connected: ``SO_PEERCRED``, ``SO_PEERGROUPS``.

    Raises:
        VfioOSError: it is no Unix socket, or not connected.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError as error:
        raise VfioOSError(error.errno or 0, "ask who connected") from error
    pid, uid, gid = struct.unpack("iII", raw)
    groups = array.array("I")
    with suppress(OSError):
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS))
    return Peer(pid, uid, frozenset({gid, *groups}))


def send(connection: socket.socket, message: Mapping[str, object], files: Sequence[int] = ()) -> None:
    """Send one message with files; the receiver gets descriptors of its own.

    Args:
        connection: a Unix socket of kind ``SOCK_SEQPACKET``; its timeout is the deadline.
        message: what JSON can hold.
        files: descriptors, at most `MAX_FILES`.

    Raises:
        ArgumentError: too long, or too many files.
        ClosedError: the peer has gone.
        DeadlineError: it does not take the message.
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE or len(files) > MAX_FILES:
        raise ArgumentError(f"a message of {len(data)} bytes and {len(files)} files is too long for a socket")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    try:
        connection.sendmsg([data], rights, socket.MSG_NOSIGNAL)
    except (TimeoutError, BlockingIOError) as error:
        raise DeadlineError("the peer does not read what it is sent") from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ClosedError("the peer has closed the connection") from error
    except OSError as error:
        raise VfioOSError(error.errno or 0, "pass files") from error


def receive(connection: socket.socket) -> tuple[dict[str, object], tuple[OwnedFd, ...]]:
    """Receive one message and the files that came with it, which are closed on exec.

    Args:
        connection: see `send`.

    Raises:
        ClosedError: the peer has gone.
        DeadlineError: nothing came.
        MalformedReplyError: it is not a message of `send`; the files that came are closed.
    """
    space = socket.CMSG_SPACE(4 * MAX_FILES)
    try:
        data, rights, flags, _ = connection.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    except (TimeoutError, BlockingIOError) as error:
        raise DeadlineError("the peer does not answer") from error
    except ConnectionResetError as error:
        raise ClosedError("the peer has closed the connection") from error
    except OSError as error:
        raise VfioOSError(error.errno or 0, "receive files") from error
    files = _files(rights)
    try:
        if not data and not files:
            raise ClosedError("the peer has closed the connection")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MalformedReplyError("a message was longer, or had more files, than this process can take")
        return _read(data), files
    except BaseException:
        for file in files:
            file.close()
        raise


def _read(data: bytes) -> dict[str, object]:
    """Read the text of a message.

    Raises:
        MalformedReplyError: it is not one.
    """
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedReplyError(f"a message of {len(data)} bytes is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise MalformedReplyError(f"a message is a {type(message).__name__} and no object")
    return message


def _files(rights: Sequence[tuple[int, int, bytes]]) -> tuple[OwnedFd, ...]:
    found = []
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i", data[: len(data) - len(data) % 4])
            found += [OwnedFd(number, _name(number)) for number in numbers]
    return tuple(found)


def _name(number: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}")
    return "a file that was passed"
