"""Restore what was recorded: records of before, of others, and such as can't be trusted."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

import vfio_user
from tests.unit.binding.conftest import DEVICE, FIRST
from tests.unit.binding.fake_bus import FakeBus
from vfio_user import binding
from vfio_user.binding import Fate, UseKind, journal
from vfio_user.errors import BindError, BusyError, JournalError


def files_of(bus: FakeBus) -> list[str]:
    return sorted(path.name for path in bus.journal.glob("*.json"))


def test_after_a_reboot_there_is_nothing_to_do(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    bus.reboot()
    shape = bus.shape()
    (found,) = vfio_user.restore()
    assert found.fate is Fate.REBOOTED
    assert bus.shape() == shape
    assert files_of(bus) == []


def test_a_record_of_an_earlier_boot_does_not_count(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    bus.reboot()
    bus._unbind(DEVICE)
    bus.put(f"bus/pci/devices/{DEVICE}/driver_override", "(null)\n")
    bus.bind(DEVICE, "edu")
    vfio_user.bind(DEVICE)
    assert binding.records()[0].boot == "b007-2"
    vfio_user.restore()
    assert bus.shape()[DEVICE][0] == "edu"


def test_a_device_that_is_gone_or_another(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE, FIRST)
    bus.remove(DEVICE)
    bus.put(f"bus/pci/devices/{FIRST}/device", "0x4711\n")
    assert [each.fate for each in vfio_user.restore()] == [Fate.GONE, Fate.REPLACED]
    assert files_of(bus) == []


def test_a_device_that_somebody_else_took(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    bus._unbind(DEVICE)
    bus.put(f"bus/pci/devices/{DEVICE}/driver_override", "uio\n")
    bus.bind(DEVICE, "uio")
    (found,) = vfio_user.restore()
    assert (found.fate, found.driver) == (Fate.TAKEN, "uio")
    assert bus.shape()[DEVICE][0] == "uio"


def test_a_device_that_is_back_already(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    bus._unbind(DEVICE)
    bus.put(f"bus/pci/devices/{DEVICE}/driver_override", "(null)\n")
    bus.bind(DEVICE, "edu")
    (found,) = vfio_user.restore()
    assert (found.fate, found.note) == (Fate.BACK, "was back already")


def test_a_driver_that_is_not_there_any_more(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    (bus.root / "bus/pci/drivers/edu").rmdir()
    bus.defaults[DEVICE] = "edu2"
    (found,) = vfio_user.restore()
    assert found.note == "driver edu is not there any more, so the kernel chose: edu2"


# -- two at once, and journals that can't be trusted


def test_two_processes_at_once(bus: FakeBus) -> None:
    with journal.Journal().locked(0.0):
        with pytest.raises(BusyError, match=rf"is locked by process {os.getpid()}"):
            vfio_user.bind(DEVICE, timeout=0.1)
        assert bus.log == []
    vfio_user.bind(DEVICE)


def test_many_processes_at_once_on_one_device(bus: FakeBus) -> None:
    """Whatever order they come in: each bind and restore is whole, and the journal is one that can be read."""
    before = bus.shape()

    def work(number: int) -> None:
        for _ in range(6):
            (binding_,) = vfio_user.bind(DEVICE, driver=("vfio-pci", "snd")[number % 2], timeout=50.0)
            assert binding_.driver == ("vfio-pci", "snd")[number % 2]
            for record in binding.records():
                assert record.before.driver == "edu", "what it was first is not forgotten"
            vfio_user.restore(timeout=50.0)

    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(number)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert binding.records() == ()
    assert bus.shape() == before
    assert [path.name for path in bus.journal.iterdir()] == ["lock"]


def test_a_journal_that_others_may_write_is_not_trusted(bus: FakeBus) -> None:
    bus.journal.mkdir()
    bus.journal.chmod(0o777)
    with pytest.raises(JournalError, match="others may write to it"):
        vfio_user.bind(DEVICE)


def test_a_journal_of_ones_own(bus: FakeBus, tmp_path: Path) -> None:
    place = tmp_path / "var/lib/vfio-user"
    vfio_user.bind(DEVICE, journal=place)
    assert vfio_user.restore() == ()
    assert len(binding.records(journal=place)) == 1
    assert len(vfio_user.restore(journal=str(place))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2}',
        "[" * 100_000,
        '{"version": 1, "address": "0000:01:00.0", "vendor": "1; rm"}',
        "\x00\xff",
    ],
)
def test_records_that_are_none(bus: FakeBus, text: str) -> None:
    vfio_user.bind(FIRST)
    (bus.journal / f"{DEVICE}.json").write_text(text)
    with pytest.raises(JournalError, match="is not a record of this version"):
        binding.records()
    with pytest.raises(BindError, match="is not a record of this version"):
        vfio_user.restore()
    assert files_of(bus) == [f"{DEVICE}.json"]  # the other one was put back nevertheless
    assert bus.shape()[FIRST][0] == "nic"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("before.driver", "../../../etc/passwd"),
        ("before.override", "x\ny"),
        ("before.module", "--help"),
        ("before.numvfs", -1),
        ("driver", 7),
        ("boot", "../x"),
        ("address", "0000:02:00.0"),
        ("vendor", 1 << 16),
        ("vendor", True),
        ("nodes", [{"path": "/etc/shadow", "uid": 0, "gid": 0, "mode": 0o666}]),
        ("nodes", [{"path": 3, "uid": 0, "gid": 0, "mode": 0o666}]),
        ("nodes", [3]),
    ],
)
def test_records_with_one_bad_field(bus: FakeBus, field: str, value: object) -> None:
    import json

    vfio_user.bind(DEVICE)
    path = bus.journal / f"{DEVICE}.json"
    record = json.loads(path.read_text())
    place = record
    *folders, last = field.split(".")
    for name in folders:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(record))
    bus.log.clear()
    with pytest.raises(BindError):
        vfio_user.restore()
    assert bus.log == []


def test_files_that_are_not_records_are_left_alone(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    (bus.journal / "readme.json").write_text("hello")
    (bus.journal / "0000:09:00.0.part").write_text("half")
    assert len(binding.records()) == 1
    vfio_user.restore()
    assert sorted(path.name for path in bus.journal.iterdir()) == ["lock", "readme.json"]


def test_kinds_of_use_have_names() -> None:
    assert {kind.value for kind in UseKind} == {
        "bridge",
        "disk",
        "share",
        "interface",
        "display",
        "console",
        "vfs",
        "open",
    }
