"""The broker, with a kernel that refuses on demand: who gets what, for how long, and what is left behind."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user.addresses import PciAddress
from vfio_user.cli import main
from vfio_user.errors import ArgumentError, ClosedError, LeaseError
from vfio_user.handover import Broker, Grant, Lease, Policy, listen
from vfio_user.handover.sockets import connect
from vfio_user.kernel.passing import receive, send

SIBLING, OTHER = "0000:01:00.1", "0000:02:00.0"


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def broker(device: FakeDevice, tmp_path: Path) -> Iterator[Broker]:
    policy = Policy((Grant(PciAddress.parse(ADDRESS), frozenset({os.getuid()})),))
    with nothing_left():
        with Broker(policy, listen(tmp_path / "socket"), request_timeout=0.3) as broker:
            thread = threading.Thread(target=broker.serve)
            thread.start()
            yield broker
            broker.stop()
            thread.join()
        broker.close()
        broker.stop()


def borrow(folder: Path, address: str = ADDRESS, mode: str = "type1v2") -> Lease:
    return vfio_user.borrow(address, broker=folder / "socket", mode=mode)


def test_lent_and_given_back(broker: Broker, tmp_path: Path, kernel: FakeKernel) -> None:
    for _ in range(2):
        with borrow(tmp_path) as lease:
            (pci,) = lease.devices
            assert (pci.name, pci.address_space.mode.value) == (ADDRESS, "type1v2")
            assert {str(each): who.pid for each, who in broker.lent.items()} == {ADDRESS: os.getpid()}
            with pci.dma_alloc(4096) as buffer:
                assert buffer.iova in kernel.mappings
            assert "0000:01:00.0" in repr(lease)
        lease.close()
        assert pci.closed
        assert pci.address_space.closed
        eventually(lambda: not broker.lent)


def test_memory_goes_with_the_connection(broker: Broker, tmp_path: Path, kernel: FakeKernel) -> None:
    lease = borrow(tmp_path)
    buffer = lease.devices[0].dma_alloc(8192)
    assert kernel.mappings
    lease._connection.close()
    eventually(lambda: not broker.lent and not kernel.mappings)
    with pytest.raises(ExceptionGroup, match="could not be closed"):  # what it had mapped is not there any more
        lease.close()
    assert buffer.closed


def test_one_at_a_time(broker: Broker, tmp_path: Path) -> None:
    with borrow(tmp_path), pytest.raises(LeaseError, match=rf"lent already: {ADDRESS} \(process {os.getpid()}\)"):
        borrow(tmp_path)


@pytest.mark.parametrize("mode", ["noiommu", "noiommu-iommufd"])
def test_no_way_round_the_iommu(broker: Broker, tmp_path: Path, mode: str) -> None:
    with pytest.raises(LeaseError, match="would go round it"):
        borrow(tmp_path, mode=mode)


def test_who_may_not_learns_nothing(broker: Broker, tmp_path: Path, tree: FakeSysfs) -> None:
    tree.add(OTHER, driver="vfio-pci", group=8)
    for address in (OTHER, "0000:7f:1f.7"):
        with pytest.raises(LeaseError, match=f"user {os.getuid()} may not have {address} here$"):
            borrow(tmp_path, address)


def test_group_that_holds_more_than_is_allowed(broker: Broker, tmp_path: Path, tree: FakeSysfs) -> None:
    tree.add(SIBLING, driver="vfio-pci", group=7)
    with pytest.raises(LeaseError, match=f"group 7 would give user {os.getuid()} {SIBLING} too"):
        borrow(tmp_path)
    tree.bind(SIBLING, "pcieport")  # harmless, and opened by nobody
    borrow(tmp_path).close()


def test_device_without_an_iommu_is_not_lent(broker: Broker, tmp_path: Path, tree: FakeSysfs) -> None:
    (tree.root / "bus/pci/devices" / ADDRESS / "iommu_group").unlink()
    with pytest.raises(LeaseError, match="has no IOMMU, and would reach all memory"):
        borrow(tmp_path)


@pytest.mark.parametrize("place", ["/dev/vfio/7", "/dev/vfio/vfio", "VFIO_SET_IOMMU", "VFIO_GROUP_GET_DEVICE_FD"])
def test_kernel_refuses(broker: Broker, tmp_path: Path, kernel: FakeKernel, place: str) -> None:
    kernel.failing[place] = errno.EBUSY
    with pytest.raises(LeaseError, match="EBUSY"):
        borrow(tmp_path)
    del kernel.failing[place]
    borrow(tmp_path).close()


def test_peers_that_say_nothing_are_not_waited_for(broker: Broker, tmp_path: Path) -> None:
    with connect(tmp_path / "socket", 20.0) as idle, pytest.raises(ClosedError):
        receive(idle)
    borrow(tmp_path).close()


def test_one_user_can_not_take_all_connections(broker: Broker, tmp_path: Path) -> None:
    made: list[socket.socket] = [connect(tmp_path / "socket", 20.0) for _ in range(20)]
    with pytest.raises(ClosedError):  # the last ones at once, the others after their time
        receive(made[-1])
    for each in made:
        each.close()
    eventually(lambda: not broker._peers)
    borrow(tmp_path).close()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "a list of addresses"),
        ({"devices": ADDRESS}, "a list of addresses"),
        ({"devices": [7]}, "a list of addresses"),
        ({"devices": ["x" * 200]}, "a list of addresses"),
        ({"devices": [ADDRESS], "mode": 7}, "a mode is a word"),
        ({"devices": [ADDRESS], "mode": "fast"}, "not an IOMMU mode"),
        ({"devices": []}, "0 devices were asked for"),
        ({"devices": [f"0000:{bus:02x}:00.0" for bus in range(40)]}, "40 devices were asked for"),
        ({"devices": ["../../etc"]}, "not a PCI address"),
    ],
)
def test_requests_that_make_no_sense(broker: Broker, tmp_path: Path, request_: dict[str, object], words: str) -> None:
    with connect(tmp_path / "socket", 20.0) as connection:
        send(connection, request_)
        message, files = receive(connection)
    assert words in str(message["refused"])
    assert files == ()


def test_second_request_ends_the_lease(broker: Broker, tmp_path: Path) -> None:
    with connect(tmp_path / "socket", 20.0) as connection:
        send(connection, {"devices": [ADDRESS], "mode": "type1v2"})
        message, files = receive(connection)
        assert "parcel" in message
        send(connection, {"devices": [ADDRESS], "mode": "type1v2"})
        with pytest.raises(ClosedError):
            receive(connection)
    for fd in files:
        fd.close()
    eventually(lambda: not broker.lent)


def test_files_are_not_taken_from_peers(broker: Broker, tmp_path: Path) -> None:
    with connect(tmp_path / "socket", 20.0) as connection:
        send(connection, {"devices": [ADDRESS]}, [connection.fileno()])
        with pytest.raises(ClosedError):
            receive(connection)
    assert not broker.lent


def test_what_can_never_be_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no addresses"):
        vfio_user.borrow(broker=tmp_path / "socket")
    with pytest.raises(ArgumentError, match="not a PCI address"):
        vfio_user.borrow("eth0", broker=tmp_path / "socket")


def test_devices_outlive_the_broker(device: FakeDevice, tmp_path: Path) -> None:
    policy = Policy((Grant(PciAddress.parse(ADDRESS), frozenset({os.getuid()})),))
    with nothing_left():
        with Broker(policy, listen(tmp_path / "socket")) as broker:
            thread = threading.Thread(target=broker.serve)
            thread.start()
            lease = borrow(tmp_path)
            broker.stop()
            thread.join()
        lease.devices[0].bar(0).write32(0, 7)
        lease.close()
    assert device.read(0, 0, 4) == b"\7\0\0\0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nobody is allowed anything: --allow"),
        (["--allow", "0000:01:00.0"], "does not say who may have what"),
        (["--allow", "1234:11e8=root"], "vfio-user list --id 1234:11e8"),
        (["--allow", "01:00.0=root", "--mode", "rw"], "mode 'rw' is not one of a file"),
        (["--allow", "01:00.0=root", "--mode", "7777"], "mode '7777' is not one of a file"),
        (["--allow", "01:00.0=root", "--socket-group", "no-such-group"], "there is no group"),
        (["--allow", "01:00.0=root", "--socket", "/proc/nowhere/socket"], "listen at /proc/nowhere/socket"),
    ],
)
def test_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["broker", *words]) == 2
    assert said in capsys.readouterr().err
