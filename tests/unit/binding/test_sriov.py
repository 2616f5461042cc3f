"""Virtual functions: all usable, or none left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.unit.binding.fake_bus import FakeBus
from vfio_user.binding import create_vfs
from vfio_user.errors import (
    ArgumentError,
    BindError,
    BusyError,
    DeadlineError,
    InUseError,
    UnsupportedError,
    VfioOSError,
)
from vfio_user.kernel import writes

PF = "0000:03:00.0"


class Card:
    """A physical function with two virtual ones, of which some go wrong."""

    def __init__(self, bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bus = bus
        self.path = bus.add_function(PF, "vfio-pci", group=20)
        for name, text in (("sriov_totalvfs", "2\n"), ("sriov_numvfs", "0\n")):
            (self.path / name).write_text(text)
        self.bound = 2
        self.refuses: dict[str, Exception] = {}
        monkeypatch.setattr(writes, "write", self.write)

    def write(self, path: Path, text: str, deadline: float) -> None:
        if text in self.refuses:
            raise self.refuses[text]
        assert path == self.path / "sriov_numvfs"
        path.write_text(f"{text}\n")
        for number in range(int(text)):
            address = f"0000:03:10.{number}"
            virtual = self.bus.add_function(address, group=21 + number)
            (self.path / f"virtfn{number}").symlink_to(virtual)
            if number < self.bound:
                self.bus._bind(address, "vfio-pci")

    @property
    def count(self) -> int:
        return int((self.path / "sriov_numvfs").read_text())


@pytest.fixture
def card(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> Card:
    bus.driver("vfio-pci")
    return Card(bus, monkeypatch)


def test_all_or_none(card: Card) -> None:
    with create_vfs(PF, 2, timeout=0) as vfs:
        assert [str(each) for each in vfs.addresses] == ["0000:03:10.0", "0000:03:10.1"]
        assert card.count == 2
        with pytest.raises(BusyError, match="has 2 virtual functions already"):
            create_vfs(PF, 1)
    assert card.count == 0
    assert repr(vfs) == f"<VirtualFunctions 2 of {PF} destroyed>"


def test_one_without_a_driver_takes_the_others_with_it(card: Card) -> None:
    card.bound = 1
    with pytest.raises(BindError, match=r"can't be used: 0000:03:10\.1 \(driver: none\)"):
        create_vfs(PF, 2, timeout=0)
    assert card.count == 0


def test_one_without_a_node_too(card: Card, bus: FakeBus) -> None:
    bus.makes_nodes = False
    with pytest.raises(BindError, match=r"0000:03:10\.0 \(no node .*/vfio/21\)"):
        create_vfs(PF, 2, timeout=0)
    assert card.count == 0


def test_those_that_stay_are_told(card: Card) -> None:
    card.bound = 0
    card.refuses["0"] = DeadlineError("the kernel does not come back")
    with pytest.raises(BindError) as caught:
        create_vfs(PF, 2, timeout=0)
    assert caught.value.__notes__ == [
        f"the virtual functions of {PF} are still there: the kernel does not come back",
    ]


def test_open_ones_stay(card: Card, bus: FakeBus) -> None:
    vfs = create_vfs(PF, 1, timeout=0)
    (bus.proc / "77/fd").mkdir(parents=True)
    (bus.proc / "77/comm").write_text("driver\n")
    (bus.proc / "77/fd/3").symlink_to(bus.dev / "vfio/21")
    with pytest.raises(InUseError, match=r"process 77 \(driver\) has 0000:03:10\.0 open"):
        vfs.destroy()
    assert card.count == 1
    os.unlink(bus.proc / "77/fd/3")
    vfs.destroy()
    assert card.count == 0


def test_refusals(card: Card, bus: FakeBus) -> None:
    for count in (0, 3):
        with pytest.raises(ArgumentError, match="it can have 1 to 2"):
            create_vfs(PF, count)
    card.refuses["1"] = VfioOSError(errno.ENOENT, "write")
    with pytest.raises(UnsupportedError, match="enable_sriov=1"):
        create_vfs(PF, 1)
    card.refuses["1"] = VfioOSError(errno.ENOMEM, "write")
    with pytest.raises(VfioOSError, match="ENOMEM"):
        create_vfs(PF, 1)
    bus.bind(PF, "nic")
    with pytest.raises(UnsupportedError, match="is not bound to vfio-pci"):
        create_vfs(PF, 1)
    bus.add_function("0000:04:00.0", "vfio-pci", group=30)
    with pytest.raises(UnsupportedError, match="no SR-IOV capability"):
        create_vfs("0000:04:00.0", 1)
