"""Owned descriptors: closed exactly once, never used afterwards, never kept open by a child."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from tests.unit.forking import in_child
from vfio_user.errors import ClosedError, ForkedError, VfioOSError
from vfio_user.kernel.fd import OwnedFd


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "node"
    file.write_bytes(b"content")
    return file


def test_open_read_close(path: Path) -> None:
    with OwnedFd.open(str(path)) as owned:
        number = owned.fileno()
        assert os.read(number, 16) == b"content"
        assert repr(owned) == f"<OwnedFd {path} {number}>"
        assert fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert owned.closed
    assert not is_open(number)
    assert "closed" in repr(owned)


def test_open_says_what_failed_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(VfioOSError, match=r"open .*/none: No such file .*\(ENOENT\)\. Bind it first") as caught:
        OwnedFd.open(str(tmp_path / "none"), hint="Bind it first")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == 2


def test_closed_descriptor_is_refused_by_name(path: Path) -> None:
    owned = OwnedFd.open(str(path))
    owned.close()
    with pytest.raises(ClosedError, match=rf"{path} is closed"):
        owned.fileno()
    with pytest.raises(ClosedError):
        owned.detach()


def test_second_close_leaves_the_number_to_its_new_owner(path: Path) -> None:
    owned = OwnedFd.open(str(path))
    number = owned.fileno()
    owned.close()
    stranger = os.open(path, os.O_RDONLY)
    try:
        assert stranger == number, "the kernel gives the lowest free number"
        owned.close()
        assert is_open(stranger)
    finally:
        os.close(stranger)


def test_many_threads_close_at_once(path: Path) -> None:
    for _ in range(50):
        owned = OwnedFd.open(str(path))
        barrier = threading.Barrier(4)

        def close(owned: OwnedFd = owned, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(5)
            owned.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert owned.closed


def test_detached_descriptor_belongs_to_the_caller(path: Path) -> None:
    owned = OwnedFd.open(str(path))
    number = owned.detach()
    owned.close()
    assert owned.closed
    assert is_open(number)
    os.close(number)


def test_forgotten_descriptor_is_closed_with_a_warning(path: Path) -> None:
    number = OwnedFd.open(str(path)).detach()
    forgotten = OwnedFd(number, "/dev/vfio/7")
    with pytest.warns(ResourceWarning, match=r"/dev/vfio/7 .* was never closed"):
        del forgotten
    assert not is_open(number)


def test_child_has_no_copy_and_is_told_so(path: Path) -> None:
    with OwnedFd.open(str(path)) as owned:
        number = owned.fileno()

        def child() -> tuple[bool, bool, str]:
            try:
                owned.fileno()
            except ForkedError as error:
                return is_open(number), owned.closed, str(error)
            return is_open(number), owned.closed, "usable"

        answer = in_child(child)
        assert answer == repr((False, True, f"{path} was opened by the parent process; open it again in this one"))
        assert os.read(owned.fileno(), 16) == b"content", "the parent keeps its own"


def test_closing_in_the_child_does_nothing(path: Path) -> None:
    with OwnedFd.open(str(path)) as owned:
        assert in_child(owned.close) == "None"
        assert is_open(owned.fileno())


def test_child_can_open_its_own(path: Path) -> None:
    def child() -> bytes:
        with OwnedFd.open(str(path)) as mine:
            return os.read(mine.fileno(), 16)

    with OwnedFd.open(str(path)):
        assert in_child(child) == repr(b"content")


def test_fork_while_another_thread_opens_and_closes(path: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            OwnedFd.open(str(path)).close()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            assert in_child(lambda: OwnedFd.open(str(path)).close()) == "None"
    finally:
        stop.set()
        thread.join(5)
