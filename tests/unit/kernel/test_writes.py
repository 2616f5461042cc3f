"""Writes that the kernel refuses, or never comes back from."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from vfio_user.errors import DeadlineError, VfioOSError
from vfio_user.kernel import writes


def soon() -> float:
    return time.monotonic() + 20


def test_it_arrives(tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_text("")
    writes.write(path, "0000:01:00.0", soon())
    assert path.read_text() == "0000:01:00.0"


def test_errno_is_kept(tmp_path: Path) -> None:
    with pytest.raises(VfioOSError) as caught:
        writes.write(tmp_path / "nothing", "x", soon())
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(VfioOSError, match=r"write 'x' to /dev/full: .*ENOSPC"):
        writes.write(Path("/dev/full"), "x\n", soon())


def test_a_write_that_blocks(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # nobody reads it: opening blocks
    begin = time.monotonic()
    with pytest.raises(DeadlineError, match="the kernel does not come back from writing 'x'"):
        writes.write(fifo, "x", time.monotonic() + 0.3)
    assert time.monotonic() - begin < 10
    with open(fifo, "rb") as reader:  # it goes on as soon as it can
        assert reader.read() == b"x"


def test_an_interrupt_lets_the_write_end_first(tmp_path: Path) -> None:
    # A shell starts background jobs with SIGINT ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    seen: list[bytes] = []

    def later() -> None:
        time.sleep(0.5)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.3)
        seen.append(fifo.read_bytes())

    main = threading.get_ident()
    thread = threading.Thread(target=later)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            writes.write(fifo, "x", soon())
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [b"x"]


def test_a_write_that_was_given_up_is_known_to_come_yet(tmp_path: Path) -> None:
    fifo = tmp_path / "unbind"
    os.mkfifo(fifo)  # opening it for writing waits for a reader, as the kernel waits for who has the device open
    with pytest.raises(DeadlineError):
        writes.write(fifo, "0000:01:00.0", time.monotonic() + 0.2)
    assert writes.outstanding()
    assert fifo.read_text() == "0000:01:00.0"
    deadline = time.monotonic() + 20
    while writes.outstanding():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_interrupts_again_gives_the_write_up(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    main = threading.get_ident()

    def twice() -> None:
        for _ in range(2):
            time.sleep(0.3)
            signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=twice)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            writes.write(fifo, "x", soon())
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert writes.outstanding()
    assert fifo.read_text() == "x"
    deadline = time.monotonic() + 20
    while writes.outstanding():
        assert time.monotonic() < deadline
        time.sleep(0.01)
