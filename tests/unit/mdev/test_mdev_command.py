"""``vfio-user mdev``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.unit.mdev.conftest import FIRST, FakeMdevBus
from vfio_user.cli import main
from vfio_user.mdev import mdevs

if TYPE_CHECKING:
    import pytest


def test_list(bus: FakeMdevBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mdev"]) == 0
    assert "No device of this machine offers mediated devices" in capsys.readouterr().out
    bus.create(bus.parent("mtty", "mtty-1", "mtty-2"), "mtty-2", FIRST)
    assert main(["mdev"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["mtty", "mtty-1", "vfio-pci", "2"],
        ["mtty", "mtty-2", "vfio-pci", "2"],
    ]
    assert lines[3].split() == [FIRST, "group", "9"]
    assert main(["mdev", "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)
    assert [each["type"] for each in kinds] == ["mtty-1", "mtty-2"]
    assert kinds[1]["mdevs"] == [{"uuid": FIRST, "group": 9, "cdev": None}]


def test_create_and_remove(bus: FakeMdevBus, capsys: pytest.CaptureFixture[str]) -> None:
    bus.parent("mtty", "mtty-1")
    assert main(["mdev", "create", "mtty", "1", "--uuid", FIRST]) == 0
    assert capsys.readouterr().out == f"{FIRST}\n"
    assert main(["mdev", "create", "mtty", "mtty-1"]) == 0
    other = capsys.readouterr().out.strip()
    assert {str(each) for each in mdevs()} == {FIRST, other}
    assert main(["mdev", "remove", FIRST, other]) == 0
    assert mdevs() == ()


def test_what_is_refused(bus: FakeMdevBus, capsys: pytest.CaptureFixture[str]) -> None:
    bus.parent("mtty", "mtty-1")
    for words, message in (
        (["create", "mdpy", "1"], "no device 'mdpy' offers mediated devices here; those that do: mtty"),
        (["create", "mtty", "7"], "no type '7'"),
        (["create", "mtty", "1", "--uuid", "x"], "'x' is not a UUID"),
        (["remove", FIRST], f"no mediated device {FIRST}"),
    ):
        assert main(["mdev", *words]) == 2
        assert message in capsys.readouterr().err
