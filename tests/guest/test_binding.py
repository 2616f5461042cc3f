"""Bind, hand over, kill at every step, restore: on the kernel's own sysfs, with the kernel's own drivers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vfio_user
from vfio_user import binding, testing
from vfio_user.binding import Fate, disks, journal, nodes
from vfio_user.cli import main
from vfio_user.errors import BindError, DeadlineError, InUseError, VfioError, VfioOSError
from vfio_user.kernel import sysfs, writes

NOBODY = 65534
pytestmark = pytest.mark.timeout(200)  # a guest is slow, and each command starts Python twice or more


def write_directly(path: Path, text: str, deadline: float) -> None:
    """Write without a helper process, which costs time here and has nothing to do with crashes."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise VfioOSError(error.errno or 0, f"write to {path}") from error
    finally:
        os.close(fd)


def as_nobody(work: Callable[[], bool]) -> bool:
    """Do something in a child that has no privilege at all; tell what it returned."""
    pid = os.fork()
    if pid == 0:
        right = False
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            right = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refused(work: Callable[[], object], words: str) -> bool:
    try:
        work()
    except VfioError as error:
        return words in str(error)
    return False


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do something in a child that is killed at one of its steps; tell whether it came to its end before that.

    There is a step before and after each write to sysfs, each change of the journal, and each hand-over of a node.
    """
    pid = os.fork()
    if pid == 0:
        left = step

        def slow(function: Callable[..., None]) -> Callable[..., None]:
            def around(*arguments: object) -> None:
                nonlocal left
                for _ in range(2):
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    if _ == 0:
                        function(*arguments)

            return around

        try:
            writes.write = slow(writes.write)  # in a process of its own
            nodes.set_owner = slow(nodes.set_owner)
            journal.Journal.put = slow(journal.Journal.put)  # type: ignore[method-assign]
            journal.Journal.remove = slow(journal.Journal.remove)  # type: ignore[method-assign]
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


class Place:
    """A device, with its kernel driver instead of vfio-pci for the length of a test."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.function = vfio_user.pci_function(address)

    @property
    def driver(self) -> str | None:
        return self.function.driver

    @property
    def override(self) -> str:
        return (self.function.path / "driver_override").read_text().strip()

    @property
    def node(self) -> Path:
        return Path(f"/dev/vfio/{self.function.iommu_group}")

    def state(self) -> tuple[str | None, str, bool]:
        return self.driver, self.override, self.node.exists()


def release(address: str, probe: bool = True) -> None:
    """Give a device to the kernel, without the tool."""
    function = vfio_user.pci_function(address)
    (function.path / "driver_override").write_text("\n")
    if function.driver is not None:
        (function.path / "driver/unbind").write_text(address)
    if probe:
        Path("/sys/bus/pci/drivers_probe").write_text(address)


def to_vfio(address: str) -> None:
    """Give a device to vfio-pci, without the tool, as the guest's start does."""
    function = vfio_user.pci_function(address)
    (function.path / "driver_override").write_text("vfio-pci")
    if function.driver not in (None, "vfio-pci"):
        (function.path / "driver/unbind").write_text(address)
    if function.driver is None:
        Path("/sys/bus/pci/drivers_probe").write_text(address)


@pytest.fixture
def nvme() -> Iterator[Place]:
    """A drive that the kernel's own driver has."""
    subprocess.run(["modprobe", "nvme"], check=False)
    address = testing.devices("nvme")[0].address
    release(address)
    place = Place(address)
    assert place.driver == "nvme", "the kernel's driver is there"
    yield place
    assert binding.records() == ()
    to_vfio(address)


@pytest.fixture
def edu() -> Iterator[Place]:
    """A device that no driver of the kernel takes."""
    address = testing.devices("edu")[0].address
    release(address)
    place = Place(address)
    assert place.driver is None
    yield place
    assert binding.records() == ()
    to_vfio(address)


def cli(*arguments: str) -> tuple[int, str, str]:
    """Run the command line; give exit code, output and error output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_bind_use_and_restore(nvme: Place) -> None:
    before = nvme.state()
    (done,) = vfio_user.bind(nvme.address)
    assert (done.driver, done.before) == ("vfio-pci", "nvme")
    assert str(nvme.node) in done.nodes
    with vfio_user.open(nvme.address) as pci:
        assert pci.config.class_code == 0x010802
    (back,) = vfio_user.restore()
    assert (back.fate, back.driver) == (Fate.OURS, "nvme")
    assert nvme.state() == before


def test_a_device_without_driver_of_the_kernel(edu: Place) -> None:
    before = edu.state()
    with vfio_user.bound(edu.address) as (done,):
        assert done.driver == edu.driver == "vfio-pci"
        assert edu.node.exists()
    assert edu.state() == before


def test_an_override_that_was_there_comes_back(nvme: Place) -> None:
    (nvme.function.path / "driver_override").write_text("nvme")
    with vfio_user.bound(nvme.address):
        assert nvme.override == "vfio-pci"
    assert (nvme.driver, nvme.override) == ("nvme", "nvme")


def test_unbind_keeps_other_drivers_away(nvme: Place) -> None:
    before = nvme.state()
    vfio_user.unbind(nvme.address)
    Path("/sys/bus/pci/drivers_probe").write_text(nvme.address)
    assert nvme.driver is None
    vfio_user.restore(nvme.address)
    assert nvme.state() == before


@pytest.mark.parametrize("call", ["bind", "unbind", "restore"])
def test_killed_at_each_step_and_restored(nvme: Place, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "write", write_directly)
    before = nvme.state()
    works: dict[str, Callable[[], object]] = {
        "bind": lambda: vfio_user.bind(nvme.address, user=NOBODY, group=NOBODY),
        "unbind": lambda: vfio_user.unbind(nvme.address),
        "restore": vfio_user.restore,
    }
    step = 0
    seen: set[object] = set()
    while True:
        if call == "restore":
            vfio_user.bind(nvme.address, user=NOBODY)
        if killed_at(step, works[call]):
            break
        seen.add((nvme.driver, nvme.override, [each.complete for each in binding.records()] == [True]))
        for each in vfio_user.restore():
            assert each.fate in (Fate.OURS, Fate.BACK)
        assert nvme.state() == before, f"killed at step {step}"
        assert binding.records() == ()
        step += 1
    vfio_user.restore()
    assert nvme.state() == before
    print(f"{call}: killed at {step} steps, in {len(seen)} different states")
    assert step >= 8
    assert len(seen) >= 4


def test_two_tools_at_once(nvme: Place) -> None:
    """One of them waits for the other; neither leaves half a record."""
    before = nvme.state()
    command = [sys.executable, "-m", "vfio_user.cli"]
    both = [subprocess.Popen([*command, "bind", nvme.address]) for _ in range(2)]
    assert [each.wait(60) for each in both] == [0, 0]
    assert len(binding.records()) == 1
    both = [subprocess.Popen([*command, "restore"]) for _ in range(2)]
    assert [each.wait(60) for each in both] == [0, 0]
    assert nvme.state() == before


def test_a_mounted_disk_is_refused(nvme: Place, tmp_path: Path) -> None:
    (disk,) = disks.disks_below(nvme.function)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", f"/dev/{disk}"], check=True)
    subprocess.run(["modprobe", "ext4"], check=False)
    subprocess.run(["mount", "-t", "ext4", f"/dev/{disk}", str(tmp_path)], check=True)
    try:
        with pytest.raises(InUseError, match=f"{disk} is mounted at {tmp_path}"):
            vfio_user.bind(nvme.address)
        assert nvme.driver == "nvme"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    fd = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(InUseError, match=f"{disk} is claimed in the kernel"):
            vfio_user.bind(nvme.address)
    finally:
        os.close(fd)


def test_an_interface_that_is_up_is_refused() -> None:
    subprocess.run(["modprobe", "e1000e"], check=False)
    address = testing.device("e1000e").address
    release(address)
    place = Place(address)
    try:
        assert place.driver == "e1000e"
        (name,) = (each.name for each in Path(f"/sys/bus/pci/devices/{address}/net").iterdir())
        subprocess.run(["busybox", "ip", "link", "set", name, "up"], check=True)
        code, _, told = cli("bind", address)
        assert code == 2
        assert f"{name} is up" in told
        assert "--force-in-use interface" in told
        assert cli("bind", address, "--force-in-use", "interface")[0] == 0
        assert place.driver == "vfio-pci"
        assert cli("restore")[0] == 0
        assert place.driver == "e1000e"
        subprocess.run(["busybox", "ip", "link", "set", name, "down"], check=True)
        with vfio_user.bound(address):
            assert place.driver == "vfio-pci"
    finally:
        to_vfio(address)


def test_a_bridge_is_refused() -> None:
    bridge = next(each for each in vfio_user.pci_functions() if each.is_bridge and each.driver == "pcieport")
    with pytest.raises(InUseError, match="it is a bridge"):
        vfio_user.bind(bridge.address)


def test_a_driver_that_refuses_leaves_all_as_it_was(nvme: Place, edu: Place) -> None:
    before = nvme.state(), edu.state()
    subprocess.run(["modprobe", "e1000e"], check=False)
    with pytest.raises(BindError, match="driver e1000e does not take"):
        vfio_user.bind(edu.address, nvme.address, driver="e1000e")
    assert (nvme.state(), edu.state()) == before


def test_siblings() -> None:
    """Two functions of one slot, that share a group."""
    first, second = (each.address for each in testing.devices("edu")[1:3])
    assert sysfs.pci_function(first).iommu_group == sysfs.pci_function(second).iommu_group
    for address in (first, second):
        release(address)
    try:
        with vfio_user.bound(second, siblings=True) as done:
            assert {str(each.address) for each in done} == {first, second}
            with vfio_user.open_all([first, second]):
                pass
        assert sysfs.pci_function(first).driver is None
    finally:
        for address in (first, second):
            to_vfio(address)


def test_a_device_that_is_open_is_not_taken_away(edu: Place) -> None:
    vfio_user.bind(edu.address)
    code = f"import vfio_user, sys; pci = vfio_user.open({edu.address!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(BindError, match=rf"process {holder.pid} \(python.*\) has it open"):
            vfio_user.restore()
        assert edu.driver == "vfio-pci"
        begin = time.monotonic()
        with pytest.raises(BindError, match="the kernel does not come back"):
            vfio_user.restore(force_in_use=["open"], timeout=1.0)
        assert time.monotonic() - begin < 20
        assert len(binding.records()) == 1
        holder.stdin.close()
        holder.wait(30)
    vfio_user.restore()
    assert edu.driver is None


def test_a_node_that_does_not_come(edu: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container, whose /dev nobody fills."""
    before = edu.state()
    monkeypatch.setattr("vfio_user.binding.files.DEV", tmp_path)
    with pytest.raises(DeadlineError, match="does not appear: nobody makes nodes here"):
        vfio_user.bind(edu.address, timeout=15.0)
    assert edu.state() == before


def test_handed_over_to_a_user(nvme: Place) -> None:
    """From the command line, to somebody without any privilege, who then needs nothing else."""
    assert cli("bind", nvme.address, "--user", "nobody", "--json")[0] == 0
    assert nvme.node.stat().st_uid == NOBODY

    def work() -> bool:
        with vfio_user.open(nvme.address) as pci, pci.dma_alloc(4096):
            (record,) = binding.records()
            return pci.bar(0).read32(8) >= 0x10000 and record.before.driver == "nvme"

    assert as_nobody(work)
    assert as_nobody(lambda: refused(vfio_user.restore, "Binding needs root"))
    assert json.loads(cli("restore", "--list", "--json")[1]) == [
        {"address": nvme.address, "before": "nvme", "complete": True, "driver": "vfio-pci"}
    ]
    assert cli("restore", "--list")[1] == f"{nvme.address} nvme -> vfio-pci\n"
    assert cli("restore")[1] == f"{nvme.address} is bound to nvme again\n"
