"""Driving a device without any privilege: nodes that were handed over, and devices that a broker opens."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.unprivileged import GROUP, MEMLOCK, USER, Unprivileged
from vfio_user import PciDevice, testing
from vfio_user.drivers.edu import Edu
from vfio_user.errors import LeaseError, VfioIoctlError, VfioOSError
from vfio_user.handover import Broker, Policy, listen
from vfio_user.handover.sockets import connect
from vfio_user.iommu import IommuMode
from vfio_user.kernel.passing import receive, send
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
Start = Callable[..., "Running"]

pytestmark = pytest.mark.timeout(200)


def drive(pci: PciDevice) -> None:
    """Use registers, interrupts, DMA and a reset."""
    with Edu(pci) as edu:
        assert edu.factorial(6) == 720  # waits for an interrupt
        with edu.alloc() as buffer:
            buffer[:16] = bytes(range(16))
            edu.copy_to_device(buffer[:16])
            edu.copy_from_device(buffer[64:80])
            assert bytes(buffer[64:80]) == bytes(range(16))
        pci.reset()
        assert edu.factorial(5) == 120


def refuses_too_much_memory(pci: PciDevice) -> None:
    with pytest.raises(VfioIoctlError, match="ulimit -l") as caught:
        pci.dma_alloc(2 * MEMLOCK)
    assert caught.value.errno == errno.ENOMEM


@contextlib.contextmanager
def iommufd_for_all() -> Iterator[None]:
    """Do what the udev rule of `examples/udev` does: an iommufd by itself gives access to nothing."""
    node = Path("/dev/iommu")
    if not node.exists():
        yield
        return
    before = node.stat().st_mode
    node.chmod(0o666)
    try:
        yield
    finally:
        node.chmod(before & 0o777)


def test_nodes_that_were_handed_over(vfio_device: Find, iommu_mode: str, tmp_path: Path) -> None:
    address = vfio_device("edu").address
    journal = tmp_path / "journal"

    def work(ready: Callable[[], None]) -> None:
        with nothing_left(), vfio_user.open(address, mode=iommu_mode) as pci:
            refuses_too_much_memory(pci)
            drive(pci)

    def locked_out(ready: Callable[[], None]) -> None:
        with pytest.raises(VfioOSError, match="hand the node over") as caught:
            vfio_user.open(address, mode=iommu_mode)
        assert caught.value.errno == errno.EACCES

    with iommufd_for_all():
        assert Unprivileged(locked_out).wait() == 0
        vfio_user.bind(address, user=USER, journal=journal)
        try:
            assert Unprivileged(work).wait() == 0
        finally:
            vfio_user.restore(address, journal=journal)
        assert Unprivileged(locked_out).wait() == 0


# -- the broker


class Running:
    """A broker in a process of its own."""

    def __init__(self, folder: Path, allowed: tuple[str, ...]) -> None:
        self.log = folder / "log"
        listener = listen(folder / "broker.sock")
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                logging.basicConfig(filename=self.log, level=logging.INFO, force=True)
                with Broker(Policy.parse(allowed), listener) as broker:
                    signal.signal(signal.SIGTERM, lambda *_: broker.stop())
                    broker.serve()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        listener.close()

    def stop(self) -> str:
        """End it, and give what it had to say; stopping twice does nothing."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            pid, self.pid = self.pid, 0
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return self.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a broker, and end it with the test."""
    open_for_all(tmp_path)
    running: list[Running] = []

    def begin(*allowed: str) -> Running:
        running.append(Running(tmp_path, allowed))
        return running[-1]

    yield begin
    for each in running:
        print(each.stop())


def open_for_all(folder: Path) -> None:
    """Let everybody go into a folder of pytest's."""
    for each in (folder, *list(folder.parents)[:3]):
        each.chmod(each.stat().st_mode | 0o055)


def test_broker_opens_and_somebody_else_drives(
    vfio_device: Find, iommu_mode: str, start: Start, tmp_path: Path
) -> None:
    address, path = vfio_device("edu").address, tmp_path / "broker.sock"
    start(f"{address}={USER}")

    def work(ready: Callable[[], None]) -> None:
        for _ in range(2):
            with nothing_left(), vfio_user.borrow(address, broker=path, mode=iommu_mode) as lease:
                (pci,) = lease.devices
                assert pci.address_space.mode is IommuMode(iommu_mode)
                assert pci.name == address
                refuses_too_much_memory(pci)
                drive(pci)

    assert Unprivileged(work).wait() == 0


def test_several_devices_share_an_address_space(vfio_device: Find, start: Start, tmp_path: Path) -> None:
    names = [vfio_device("edu").address, vfio_device("nvme").address]
    start(*(f"{name}=@{GROUP + 1}" for name in names))

    def work(ready: Callable[[], None]) -> None:
        with vfio_user.borrow(*names, broker=tmp_path / "broker.sock") as lease:
            assert [each.name for each in lease.devices] == names
            edu, nvme = lease.devices
            assert edu.address_space is nvme.address_space
            drive(edu)
            assert nvme.config.class_code == 0x010802

    assert Unprivileged(work, groups=(GROUP + 1,)).wait() == 0


def test_lease_ends_with_a_peer_that_is_killed(
    vfio_device: Find, iommu_mode: str, start: Start, tmp_path: Path
) -> None:
    address, path = vfio_device("edu").address, tmp_path / "broker.sock"
    start(f"{address}={USER}")

    def hold(ready: Callable[[], None]) -> None:
        lease = vfio_user.borrow(address, broker=path, mode=iommu_mode)
        lease.devices[0].dma_alloc(8192)
        lease.devices[0].set_master(True)
        ready()
        signal.pause()

    def ask(ready: Callable[[], None]) -> None:
        with pytest.raises(LeaseError, match=rf"lent already: {address} \(process \d+\)"):
            vfio_user.borrow(address, broker=path, mode=iommu_mode)

    def drive_it(ready: Callable[[], None]) -> None:
        with vfio_user.borrow(address, broker=path, mode=iommu_mode) as lease:
            assert not lease.devices[0].config.command & 4
            drive(lease.devices[0])

    holder = Unprivileged(hold)
    holder.wait_until_ready()
    assert Unprivileged(ask).wait() == 0
    holder.kill()
    assert Unprivileged(drive_it).wait() == 0


def test_files_that_outlive_the_lease(vfio_device: Find, start: Start, tmp_path: Path) -> None:
    """The peer gives the connection up and keeps the files: memory is gone, and the device is its until it ends."""
    address, path = vfio_device("edu").address, tmp_path / "broker.sock"
    broker = start(f"{address}={USER}")

    def keep(ready: Callable[[], None]) -> None:
        lease = vfio_user.borrow(address, broker=path)
        pci = lease.devices[0]
        buffer = pci.dma_alloc(4096)
        lease._connection.close()
        deadline = time.monotonic() + 60
        while True:  # until the broker has heard of it
            with contextlib.suppress(VfioOSError, LeaseError):
                vfio_user.borrow(address, broker=path)
            if pci.address_space.backend.unmap(buffer.iova, buffer.size) == 0:
                break
            assert time.monotonic() < deadline
            buffer = pci.dma_alloc(4096)
        with pytest.raises(LeaseError, match=r"open|busy"):
            vfio_user.borrow(address, broker=path)

    assert Unprivileged(keep).wait() == 0
    assert Unprivileged(lambda ready: vfio_user.borrow(address, broker=path).close()).wait() == 0
    assert "still has it open" in broker.stop()


def test_who_may_not(vfio_device: Find, start: Start, tmp_path: Path) -> None:
    address, path = vfio_device("edu").address, tmp_path / "broker.sock"
    first, second = (each.address for each in testing.devices("edu")[1:3])
    start(f"{address}={USER + 1}", f"{first}={USER}")

    def work(ready: Callable[[], None]) -> None:
        for name in (address, "0000:7f:1f.7"):  # one that is there, one that is not: the same words
            with pytest.raises(LeaseError, match=f"user {USER} may not have {name} here"):
                vfio_user.borrow(name, broker=path)
        # Through its group it would get the other device of the group, too.
        with pytest.raises(LeaseError, match=f"would give user {USER} {second} too"):
            vfio_user.borrow(first, broker=path, mode="type1v2")
        with pytest.raises(LeaseError, match="would go round it"):
            vfio_user.borrow(first, broker=path, mode="noiommu")
        with nothing_left(), pytest.raises(LeaseError, match="not an IOMMU mode"):
            ask(path, {"devices": [first], "mode": "fast"})

    assert Unprivileged(work).wait() == 0


def ask(path: Path, request: dict[str, object], files: tuple[int, ...] = ()) -> dict[str, object]:
    """Send something of one's own to the broker."""
    with connect(path, 30.0) as connection:
        send(connection, request, files)
        message, passed = receive(connection)
    for fd in passed:
        fd.close()
    if "refused" in message:
        raise LeaseError(str(message["refused"]))
    return message


def test_broker_outlives_nonsense(vfio_device: Find, start: Start, tmp_path: Path) -> None:
    address, path = vfio_device("edu").address, tmp_path / "broker.sock"
    start(f"{address}={USER}")

    def work(ready: Callable[[], None]) -> None:
        requests: list[dict[str, object]] = [{}, {"mode": 7}]
        requests += [{"devices": each} for each in (address, [7], [], [f"0:0.{each}" for each in range(40)])]
        for request in requests:
            with contextlib.suppress(LeaseError):
                ask(path, request)
        for data in (b"", b"[1]", b"{", b"\xff" * 70000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect(str(path))
                with contextlib.suppress(OSError):
                    connection.send(data)
        with contextlib.suppress(vfio_user.VfioError):
            ask(path, {"devices": [address]}, (os.open("/dev/null", os.O_RDONLY),) * 3)
        with vfio_user.borrow(address, broker=path) as lease:
            drive(lease.devices[0])

    assert Unprivileged(work).wait() == 0


def test_command_serves_and_drivers_outlive_it(vfio_device: Find, tmp_path: Path) -> None:
    address, path = vfio_device("edu").address, tmp_path / "broker.sock"
    open_for_all(tmp_path)
    command = [sys.executable, "-m", "vfio_user.cli", "broker", "--socket", str(path), "--allow", f"{address}={USER}"]

    def work(ready: Callable[[], None]) -> None:
        with nothing_left(), vfio_user.borrow(address, broker=path) as lease:
            ready()
            assert select.select([lease._connection], [], [], 60)[0], "the broker has ended"
            drive(lease.devices[0])

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline().strip() == str(path)
        child = Unprivileged(work)
        child.wait_until_ready()
        broker.send_signal(signal.SIGTERM)
        assert broker.wait(60) == 0
        assert child.wait() == 0
    with pytest.raises(VfioOSError, match=r"ended; start it again"):
        vfio_user.borrow(address, broker=path)
