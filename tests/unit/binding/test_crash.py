"""Kill the process between any two steps: the next one restores everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vfio_user
from tests.unit.binding.conftest import DEVICE, FIRST, SECOND, machine
from tests.unit.binding.fake_bus import FakeBus, Killed
from vfio_user import binding
from vfio_user.binding import NodeState

Work = Callable[[], object]


def bound_already(bus: FakeBus) -> None:
    """A neighbour is bound, so that the group's node is there before, and belongs to somebody."""
    vfio_user.bind(FIRST, journal=bus.journal.parent / "other")
    node = str(bus.dev / "vfio/9")
    bus.owners[node] = NodeState(node, 5, 6, 0o640)


def nothing(bus: FakeBus) -> None:
    pass


def bound_by_us(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE, user=1000)


def with_virtual_functions(bus: FakeBus) -> None:
    bus.put(f"bus/pci/devices/{DEVICE}/sriov_numvfs", "4\n")


def with_an_override(bus: FakeBus) -> None:
    bus.put(f"bus/pci/devices/{DEVICE}/driver_override", "edu\n")


def use_a_block() -> None:
    with vfio_user.bound(DEVICE):
        pass


def fail() -> None:
    with pytest.raises(vfio_user.VfioError):
        vfio_user.bind(DEVICE, driver="refuses")


CASES: dict[str, tuple[Callable[[FakeBus], None], Work]] = {
    "bind": (nothing, lambda: vfio_user.bind(DEVICE)),
    "bind with an override": (with_an_override, lambda: vfio_user.bind(DEVICE)),
    "bind with virtual functions": (with_virtual_functions, lambda: vfio_user.bind(DEVICE, force_in_use=["vfs"])),
    "bind two, and hand over": (nothing, lambda: vfio_user.bind(FIRST, siblings=True, user=1000, group=1000)),
    "bind beside a neighbour": (bound_already, lambda: vfio_user.bind(SECOND, user=1000)),
    "unbind": (nothing, lambda: vfio_user.unbind(DEVICE)),
    "unbind what is bound": (bound_by_us, lambda: vfio_user.unbind(DEVICE)),
    "restore": (bound_by_us, lambda: vfio_user.restore()),
    "block": (nothing, use_a_block),
    "undo": (nothing, fail),
}


def picture(bus: FakeBus) -> object:
    nodes = sorted(path for path in bus.dev.rglob("*") if path.is_file())
    return bus.shape(), [bus.node_state(path) for path in nodes]


def survive(bus: FakeBus, prepare: Callable[[FakeBus], None], work: Work, before: object, at: int) -> bool:
    """Do the work, be killed at a step, restore; tell whether the work was over before that step."""
    prepare(bus)
    bus.steps, bus.dies_at = 0, at
    try:
        work()
        return True
    except Killed:
        pass
    bus.revive()
    vfio_user.restore()
    assert picture(bus) == before, f"killed at step {at}"
    assert binding.records() == ()
    assert vfio_user.restore() == ()
    vfio_user.bind(DEVICE, force_in_use=["vfs"])  # and the tool is as good as ever
    return False


@pytest.mark.parametrize("name", CASES)
def test_killed_at_each_step(name: str, tmp_path: Path) -> None:
    prepare, work = CASES[name]
    at = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            first = machine(tmp_path / f"{at}-before", patch)
            first.refusing["refuses"] = 5
            if prepare is not bound_by_us:
                prepare(first)
            before = picture(first)
        with pytest.MonkeyPatch.context() as patch:
            bus = machine(tmp_path / f"{at}-before/../{at}", patch)
            bus.refusing["refuses"] = 5
            bus.driver("refuses")
            if survive(bus, prepare, work, _moved(before, f"{at}-before", f"{at}-before/../{at}"), at):
                break
        at += 1
    assert at >= 6, "too few steps to be true"


@pytest.mark.parametrize("at", range(4))
def test_killed_while_a_device_without_driver_is_put_back(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = machine(tmp_path, monkeypatch)
    bus._unbind(DEVICE)
    before = picture(bus)
    vfio_user.bind(DEVICE)
    bus.steps, bus.dies_at = 0, at
    with pytest.raises(Killed):
        vfio_user.restore()
    bus.revive()
    vfio_user.restore()
    assert picture(bus) == before
    assert binding.records() == ()


def _moved(value: object, old: str, new: str) -> object:
    """Let a picture of one machine name the folders of another."""
    if isinstance(value, NodeState):
        return NodeState(value.path.replace(f"/{old}/", f"/{new}/"), value.uid, value.gid, value.mode)
    if isinstance(value, tuple | list):
        return type(value)(_moved(each, old, new) for each in value)
    return value


@pytest.mark.parametrize("name", ["bind two, and hand over", "restore"])
def test_killed_while_restoring_after_being_killed(name: str, tmp_path: Path) -> None:
    prepare, work = CASES[name]
    for first in (3, 5, 7):
        at = 0
        done = False
        while not done:
            with pytest.MonkeyPatch.context() as patch:
                bus = machine(tmp_path / f"{first}-{at}", patch)
                before = bus.shape()
                prepare(bus)
                bus.steps, bus.dies_at = 0, first
                with pytest.raises(Killed):
                    work()
                bus.revive()
                bus.steps, bus.dies_at = 0, at
                try:
                    vfio_user.restore()
                    done = True
                except Killed:
                    bus.revive()
                    vfio_user.restore()
                assert bus.shape() == before
            at += 1
