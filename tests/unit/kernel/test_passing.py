"""Messages with files: what arrives is what was sent, and what else may come is refused by name."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfio_user.errors import ArgumentError, ClosedError, DeadlineError, MalformedReplyError, VfioError
from vfio_user.kernel.passing import MAX_FILES, MAX_MESSAGE, peer_of, receive, send

Pair = tuple[socket.socket, socket.socket]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair() -> Iterator[Pair]:
    before = open_files()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.settimeout(5.0)
    other.settimeout(5.0)
    with one, other:
        yield one, other
    assert open_files() == before


def test_files_arrive_as_files_of_the_receiver(pair: Pair) -> None:
    reader, writer = os.pipe()
    send(pair[0], {"what": ["pipe"]}, [writer])
    os.close(writer)
    message, (file,) = receive(pair[1])
    assert message == {"what": ["pipe"]}
    assert not os.get_inheritable(file.fileno())
    assert file.name.startswith("pipe:")
    os.write(file.fileno(), b"through it")
    file.close()
    assert os.read(reader, 20) == b"through it"
    os.close(reader)


def test_as_many_files_as_the_kernel_passes(pair: Pair) -> None:
    send(pair[0], {}, [pair[0].fileno()] * MAX_FILES)
    _, files = receive(pair[1])
    assert len({file.fileno() for file in files}) == MAX_FILES
    for file in files:
        file.close()
    with pytest.raises(ArgumentError, match="254 files is too long"):
        send(pair[0], {}, [0] * (MAX_FILES + 1))
    with pytest.raises(ArgumentError, match="too long for a socket"):
        send(pair[0], {"text": "x" * MAX_MESSAGE})


def test_who_is_there(pair: Pair) -> None:
    peer = peer_of(pair[0])
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert peer.gids == {os.getgid(), *os.getgroups()}


def test_peer_that_has_gone(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(ClosedError):
        receive(pair[1])
    with pytest.raises(ClosedError):
        send(pair[1], {})


def test_peer_that_says_nothing_or_reads_nothing(pair: Pair) -> None:
    pair[1].settimeout(0.01)
    with pytest.raises(DeadlineError, match="does not answer"):
        receive(pair[1])
    pair[1].setblocking(False)

    def fill() -> None:
        while True:
            send(pair[1], {"text": "x" * 1000})

    with pytest.raises(DeadlineError, match="does not read"):
        fill()


@pytest.mark.parametrize("data", [b"[]", b"7", b"{", b"\xff", b"[" * 60000, b"{}" + b" " * MAX_MESSAGE])
def test_what_is_no_message(pair: Pair, data: bytes) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, pair[0].fileno().to_bytes(4, sys.byteorder))]
    pair[0].sendmsg([data], rights)
    with pytest.raises(MalformedReplyError, match="message"):
        receive(pair[1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), count=st.integers(0, 3))
def test_any_bytes_are_read_or_refused(pair: Pair, data: bytes, count: int) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = open_files()
    with one, other:
        fds = b"".join(one.fileno().to_bytes(4, sys.byteorder) for _ in range(count))
        one.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if count else [])
        try:
            message, files = receive(other)
        except VfioError:
            pass
        else:
            assert isinstance(message, dict)
            assert len(files) == count
            for file in files:
                file.close()
        assert open_files() == before
