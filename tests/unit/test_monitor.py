"""What a driver's process publishes, and who is answered."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import FakeDevice
from tests.unit.forking import in_child
from vfio_user import PciDevice
from vfio_user.drivers import edu
from vfio_user.drivers.edu import Edu
from vfio_user.errors import BusyError, VfioOSError
from vfio_user.monitor import ask


@pytest.fixture
def driver(device: FakeDevice, pci: PciDevice) -> Iterator[Edu]:
    device.write(0, edu.ID, struct.pack("<I", 0x010000ED))
    with Edu(pci) as driver:
        yield driver


def test_nobody_answers_without_one(pci: PciDevice) -> None:
    assert ask(ADDRESS) is None


def test_what_is_published(driver: Edu, pci: PciDevice) -> None:
    with vfio_user.Monitor(pci), driver.alloc(0x2000) as buffer:
        state = ask(ADDRESS)
        assert state is not None
        assert (state["pid"], state["driver"], state["mode"]) == (os.getpid(), "Edu", "type1v2")
        assert (state["mappings"], state["mapped_bytes"]) == (1, 0x2000)
        assert state["dma"] == [{"iova": buffer.iova, "size": 0x2000}]
        assert state["memory"]["state"] == "live"
        assert state["vectors"] == {"MSI": 1}
        found = {row["name"]: row["value"] for row in state["registers"]}
        assert found["identification"] == 0x010000ED
        assert found["irq_ack"] is None, "it can't be read"
        with pci.bar(0).access():
            (reader,) = (ask(ADDRESS) or {})["memory"]["holders"]
            assert reader["thread"] > 0
        pci.reset()
        assert (ask(ADDRESS) or {})["resets"] == 1
    assert ask(ADDRESS) is None


def test_one_for_each_device(pci: PciDevice) -> None:
    with vfio_user.Monitor(pci) as monitor:
        with pytest.raises(BusyError, match="another monitor"):
            vfio_user.Monitor(pci).start()
        with pytest.raises(BusyError, match="already"):
            monitor.start()
    monitor.stop()


def test_a_device_that_was_closed_is_told_as_such(pci: PciDevice) -> None:
    with vfio_user.Monitor(pci):
        pci.close()
        assert (ask(ADDRESS) or {})["memory"]["state"] == "closed"


def test_a_forked_child_holds_nothing_open(pci: PciDevice) -> None:
    monitor = vfio_user.Monitor(pci)
    monitor.start()
    assert in_child(lambda: monitor.stop()) == "None"
    assert ask(ADDRESS) is not None
    monitor.stop()


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b"\xff"])
def test_an_answer_that_is_none(answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0vfio-user/monitor/0000:09:00.0")
        listener.listen()
        child = os.fork()
        if child == 0:
            connection, _ = listener.accept()
            connection.sendall(answer)
            os._exit(0)
        with pytest.raises(VfioOSError, match="something else has its name"):
            ask("0000:09:00.0")
        os.waitpid(child, 0)


def test_who_does_not_answer_is_not_waited_for() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0vfio-user/monitor/0000:09:00.0")
        listener.listen()
        with pytest.raises(VfioOSError, match="ask the monitor"):
            ask("0000:09:00.0", timeout=0.05)


def test_it_is_plain_data(driver: Edu, pci: PciDevice) -> None:
    assert json.loads(json.dumps(vfio_user.Monitor(pci).state()))["device"] == ADDRESS
