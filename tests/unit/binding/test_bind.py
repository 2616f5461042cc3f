"""Bind, unbind, restore on a bus that reacts: what is done, in which order, and what is refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import vfio_user
from tests.unit.binding.conftest import DEVICE, FIRST, SECOND
from tests.unit.binding.fake_bus import FakeBus, cdev
from vfio_user import binding, bound
from vfio_user.binding import Fate
from vfio_user.errors import ArgumentError, BindError, BusyError, DeadlineError, InUseError, VfioOSError


def files_of(bus: FakeBus) -> list[str]:
    return sorted(path.name for path in bus.journal.glob("*.json"))


def test_bind_and_restore(bus: FakeBus) -> None:
    before = bus.shape()
    (done,) = vfio_user.bind("01:00.0")
    assert (str(done.address), done.driver, done.before, done.recorded) == (DEVICE, "vfio-pci", "edu", True)
    assert done.nodes == (f"{bus.dev}/vfio/7", f"{bus.dev}/vfio/devices/{cdev(DEVICE)}")
    assert done.culprits == ()
    path = f"bus/pci/devices/{DEVICE}"
    assert bus.log == [
        f"{path}/driver_override=vfio-pci",
        f"{path}/driver/unbind={DEVICE}",
        f"bus/pci/drivers/vfio-pci/bind={DEVICE}",
    ]
    (record,) = binding.records()
    assert (record.before.driver, record.driver, record.complete) == ("edu", "vfio-pci", True)
    (back,) = vfio_user.restore()
    assert (back.fate, back.driver, back.note) == (Fate.OURS, "edu", "is bound to edu again")
    assert bus.shape() == before
    assert files_of(bus) == []
    assert vfio_user.restore() == ()


def test_what_is_on_disk_before_anything_changes(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    react = bus.write

    def look_first(path: Path, text: str, deadline: float) -> None:
        seen.append(files_of(bus))
        react(path, text, deadline)

    monkeypatch.setattr("vfio_user.kernel.writes.write", look_first)
    vfio_user.bind(DEVICE)
    assert seen[0] == [f"{DEVICE}.json"]
    assert not (bus.journal / "lock").is_symlink()


def test_a_device_without_driver_gets_none_back(bus: FakeBus) -> None:
    bus.add_function("0000:03:00.0", group=3)
    before = bus.shape()
    vfio_user.bind("03:00.0")
    (back,) = vfio_user.restore("03:00.0")
    assert back.note == "has no driver again"
    assert bus.shape() == before


def test_an_override_that_was_there_comes_back(bus: FakeBus) -> None:
    bus.put(f"bus/pci/devices/{DEVICE}/driver_override", "edu\n")
    before = bus.shape()
    vfio_user.bind(DEVICE)
    vfio_user.restore()
    assert bus.shape() == before


def test_virtual_functions_come_back(bus: FakeBus) -> None:
    bus.put(f"bus/pci/devices/{DEVICE}/sriov_numvfs", "4\n")
    before = bus.shape()
    with pytest.raises(InUseError, match=r"4 virtual functions of it are switched on.*--force-in-use vfs"):
        vfio_user.bind(DEVICE)
    assert bus.shape() == before
    vfio_user.bind(DEVICE, force_in_use=["vfs"])
    assert bus.shape()[DEVICE] == ("vfio-pci", "vfio-pci", "0")
    vfio_user.restore()
    assert bus.shape() == before


def test_siblings_come_with_it_and_bridges_do_not(bus: FakeBus) -> None:
    before = bus.shape()
    (alone,) = vfio_user.bind(FIRST)
    assert [str(each.address) for each in alone.culprits] == [SECOND]
    vfio_user.restore()
    done = vfio_user.bind(FIRST, siblings=True)
    assert [str(each.address) for each in done] == [FIRST, SECOND]
    assert done[0].culprits == ()
    assert [str(each.address) for each in vfio_user.restore()] == [FIRST, SECOND]
    assert bus.shape() == before


def test_unbind_leaves_no_driver_and_keeps_it_so(bus: FakeBus) -> None:
    before = bus.shape()
    (done,) = vfio_user.unbind(SECOND)
    assert (done.driver, done.before, done.nodes) == (None, "snd", ())
    assert bus.shape()[SECOND] == (None, "none", "")
    assert binding.records()[0].driver is None
    vfio_user.bind(SECOND)  # the record keeps what it was at first
    (back,) = vfio_user.restore()
    assert back.driver == "snd"
    assert bus.shape() == before


def test_binding_twice_changes_nothing_the_second_time(bus: FakeBus) -> None:
    before = bus.shape()
    vfio_user.bind(DEVICE)
    bus.log.clear()
    (again,) = vfio_user.bind(DEVICE)
    assert (again.driver, again.recorded, len(again.nodes)) == ("vfio-pci", False, 2)
    assert bus.log == []
    vfio_user.restore()
    assert bus.shape() == before


def test_nodes_are_handed_over_and_taken_back(bus: FakeBus) -> None:
    vfio_user.bind(FIRST)
    node = bus.dev / "vfio/9"
    vfio_user.bind(SECOND, user=1000, group="1001")
    own = bus.node_state(node)
    assert own is not None
    assert (own.uid, own.gid, own.mode) == (1000, 1001, 0o660)
    vfio_user.restore(SECOND)  # the group's node stays, for the other function
    assert bus.node_state(node) == binding.NodeState(str(node), 0, 0, 0o600)


def test_a_device_that_is_bound_already_is_handed_over_only(bus: FakeBus) -> None:
    bus.add_function("0000:03:00.0", group=3)
    bus._bind("0000:03:00.0", "vfio-pci")
    before = bus.shape()
    (done,) = vfio_user.bind("03:00.0", user=1000)
    assert done.recorded
    assert bus.log == []
    own = bus.node_state(bus.dev / "vfio/3")
    assert own is not None
    assert (own.uid, own.mode) == (1000, 0o600)
    (back,) = vfio_user.restore()
    assert back.fate is Fate.OURS
    assert bus.shape() == before
    own = bus.node_state(bus.dev / "vfio/3")
    assert own is not None
    assert own.uid == 0


def test_nodes_that_somebody_else_handed_on_are_left_alone(bus: FakeBus) -> None:
    bus.add_function("0000:03:00.0", group=3)
    bus._bind("0000:03:00.0", "vfio-pci")
    vfio_user.bind("03:00.0", user=1000)
    other = binding.NodeState(f"{bus.dev}/vfio/3", 77, 77, 0o600)
    bus.owners[other.path] = other
    vfio_user.restore()
    assert bus.node_state(Path(other.path)) == other


def test_bound_for_a_block(bus: FakeBus) -> None:
    before = bus.shape()
    with vfio_user.bound(DEVICE, FIRST) as devices:
        assert [each.driver for each in devices] == ["vfio-pci", "vfio-pci"]
        assert len(binding.records()) == 2
    assert bus.shape() == before
    with pytest.raises(ZeroDivisionError), vfio_user.bound(DEVICE):
        _ = 1 // 0
    assert bus.shape() == before


def test_a_block_leaves_what_was_bound_before(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    with vfio_user.bound(DEVICE, FIRST) as devices:
        assert [each.recorded for each in devices] == [False, True]
    assert bus.shape()[DEVICE][0] == "vfio-pci"
    assert bus.shape()[FIRST][0] == "nic"
    vfio_user.unbind(FIRST)
    with pytest.raises(BusyError, match=f"was given to no driver before: vfio-user restore {FIRST}"), bound(FIRST):
        pass
    with pytest.raises(BusyError, match="was given to vfio-pci before"), bound(DEVICE, user=1000):
        pass


# -- what goes wrong


def test_a_driver_that_refuses(bus: FakeBus) -> None:
    before = bus.shape()
    bus.refusing["vfio-pci"] = errno.EINVAL
    with pytest.raises(BindError, match=f"driver vfio-pci does not take {DEVICE}: Invalid argument. dmesg"):
        vfio_user.bind(DEVICE)
    assert bus.shape() == before
    assert files_of(bus) == []


def test_a_device_without_iommu_is_explained(bus: FakeBus) -> None:
    bus.add_function("0000:03:00.0", "edu")
    bus.refusing["vfio-pci"] = errno.EINVAL
    with pytest.raises(BindError, match=r"No IOMMU translates for it: vfio-user doctor 0000:03:00\.0"):
        vfio_user.bind("03:00.0")


def test_a_failure_of_the_second_undoes_the_first(bus: FakeBus) -> None:
    before = bus.shape()
    bus.put(f"bus/pci/devices/{SECOND}/driver_override", "(null)\n")
    write = bus.write

    def refuse(path: Path, text: str, deadline: float) -> None:
        if path.name == "bind" and text == SECOND and path.parent.name == "vfio-pci":
            raise VfioOSError(errno.ENODEV, "no")
        write(path, text, deadline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vfio_user.kernel.writes.write", refuse)
        with pytest.raises(BindError):
            vfio_user.bind(FIRST, SECOND, user=1000)
    assert bus.shape() == before
    assert files_of(bus) == []


def test_a_failure_that_cannot_be_undone_says_so_and_stays_recorded(bus: FakeBus) -> None:
    before = bus.shape()
    bus.refusing = {"vfio-pci": errno.EIO, "edu": errno.EIO}
    with pytest.raises(BindError, match=f"{DEVICE} could not be put back .*vfio-user restore"):
        vfio_user.bind(DEVICE)
    assert files_of(bus) == [f"{DEVICE}.json"]
    with pytest.raises(BindError, match="driver edu does not take"):
        vfio_user.restore()
    bus.refusing = {}
    vfio_user.restore()
    assert bus.shape() == before


def test_an_interrupt_undoes_it_too(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bus.shape()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vfio_user.binding.nodes.wait_for_nodes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vfio_user.bind(DEVICE)
    assert bus.shape() == before
    assert files_of(bus) == []


def test_an_interrupt_while_the_kernel_is_at_work_keeps_the_record(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bus.shape()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vfio_user.binding.nodes.wait_for_nodes", interrupt)
    monkeypatch.setattr("vfio_user.binding.transaction.outstanding", lambda: True)
    with pytest.raises(KeyboardInterrupt) as caught:
        vfio_user.bind(DEVICE)
    assert "has yet to change" in caught.value.__notes__[0]
    assert files_of(bus) == [f"{DEVICE}.json"]
    assert [each.fate for each in vfio_user.restore()] == [Fate.BACK]
    assert bus.shape() == before


def test_a_node_that_does_not_come(bus: FakeBus) -> None:
    before = bus.shape()
    bus.makes_nodes = False
    with pytest.raises(DeadlineError, match=r"vfio/7 \(511:7\) does not appear: nobody makes nodes.*mknod .* c 511 7"):
        vfio_user.bind(DEVICE, timeout=0.3)
    assert bus.shape() == before


def test_udev_that_is_not_done(bus: FakeBus) -> None:
    bus.put("udev/queue", "", bus.run)
    with pytest.raises(DeadlineError, match=r"udev is still busy with .*vfio/7"):
        vfio_user.bind(DEVICE, timeout=0.3)


def test_a_kernel_without_the_driver(bus: FakeBus) -> None:
    with pytest.raises(BindError, match="no PCI driver mlx5_vfio_pci: its module is not installed"):
        vfio_user.bind(DEVICE, driver="mlx5_vfio_pci")
    assert bus.log == []


def test_modules_are_loaded(bus: FakeBus, tmp_path: Path) -> None:
    folder = bus.root / "bus/pci/drivers/late"
    program = tmp_path / "modprobe"
    program.write_text(f'#!/bin/sh\n[ "$1" = late ] && mkdir {folder}\n')
    program.chmod(0o755)
    bus.put("proc/sys/kernel/modprobe", f"{program}\n", bus.dev.parent)
    (done,) = vfio_user.bind(DEVICE, driver="late")
    assert (done.driver, done.nodes) == ("late", ())


@pytest.mark.parametrize("name", ["../../x", "", "a b", "none", "-x", "x" * 64, "vfio-pci\n"])
def test_driver_names_are_checked(bus: FakeBus, name: str) -> None:
    with pytest.raises(ArgumentError, match="is not the name of a kernel driver"):
        vfio_user.bind(DEVICE, driver=name)
    assert bus.log == []


def test_arguments_are_checked(bus: FakeBus) -> None:
    with pytest.raises(ArgumentError, match="no addresses"):
        vfio_user.bind()
    with pytest.raises(ArgumentError, match=r"no PCI function 0000:55:00\.0"):
        vfio_user.bind("55:00.0")
    with pytest.raises(ArgumentError, match="there is no user 'nobody-of-this-name'"):
        vfio_user.bind(DEVICE, user="nobody-of-this-name")
    for user in ("", "²", "１", "4294967295", "-1", "9" * 5000, "a\0b", "\udcff"):  # noqa: RUF001
        with pytest.raises(ArgumentError, match="there is no user"):
            vfio_user.bind(DEVICE, user=user)
    with pytest.raises(ArgumentError, match="there is no group 'nobody-of-this-name'"):
        vfio_user.bind(DEVICE, group="nobody-of-this-name")
    with pytest.raises(ArgumentError, match="'all' is not a valid UseKind; there are: bridge, disk"):
        vfio_user.bind(DEVICE, force_in_use=["all"])
    for timeout in (0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="more than 0 seconds"):
            vfio_user.bind(DEVICE, timeout=timeout)
        with pytest.raises(ArgumentError, match="more than 0 seconds"):
            vfio_user.restore(timeout=timeout)
    with pytest.raises(ArgumentError, match=f"nothing is recorded for {DEVICE}.*vfio-user bind --driver NAME {DEVICE}"):
        vfio_user.restore(DEVICE)
    assert vfio_user.bind(DEVICE, user="root", group="root")[0].driver == "vfio-pci"
