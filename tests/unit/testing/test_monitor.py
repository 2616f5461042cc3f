"""The channel from a program in the guest to QEMU's monitor."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vfio_user.errors import DeadlineError
from vfio_user.testing import inside
from vfio_user.testing.errors import GuestError
from vfio_user.testing.monitor import Monitor, MonitorError, Requests


class FakeMonitor(Monitor):
    """Answers without QEMU."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self.asked: list[tuple[str, object]] = []

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = 30.0) -> object:
        self.asked.append((command, arguments))
        if command == "bad":
            raise MonitorError("bad: QEMU says no")
        return {"asked": command}


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMonitor]:
    monkeypatch.setenv("VFIO_USER_OUTPUT", str(tmp_path))
    folder = tmp_path / "guest/requests"
    folder.mkdir(parents=True)
    fake = FakeMonitor()
    requests = Requests(folder, fake)
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.01):
            requests.answer()

    thread = threading.Thread(target=serve)
    thread.start()
    yield fake
    stop.set()
    thread.join()
    assert list(folder.iterdir()) == []


def test_an_answer_comes_back(channel: FakeMonitor) -> None:
    assert inside.qmp("device_del", id="edu0") == {"asked": "device_del"}
    assert channel.asked == [("device_del", {"id": "edu0"})]


def test_underscores_in_names_become_hyphens(channel: FakeMonitor) -> None:
    inside.qmp("object-add", qom_type="x")
    assert channel.asked == [("object-add", {"qom-type": "x"})]


def test_the_human_monitor(channel: FakeMonitor) -> None:
    inside.hmp("info pci")
    assert channel.asked == [("human-monitor-command", {"command-line": "info pci"})]


def test_a_refusal_comes_back(channel: FakeMonitor) -> None:
    with pytest.raises(MonitorError, match="QEMU says no"):
        inside.qmp("bad")


def test_no_runner_is_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_USER_OUTPUT", str(tmp_path))
    (tmp_path / "guest/requests").mkdir(parents=True)
    with pytest.raises(DeadlineError, match=r"within 0\.1 s"):
        inside.qmp("query-status", timeout=0.1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"', '{"arguments": {}}'])
def test_nonsense_is_answered_with_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "1.request").write_text(text)
    assert Requests(tmp_path, FakeMonitor()).answer() == 1
    assert json.loads((tmp_path / "1.answer").read_text())["error"].startswith("not a request")


def test_a_half_written_request_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "1.part").write_text('{"exec')
    assert Requests(tmp_path, FakeMonitor()).answer() == 0


def test_without_qemu_there_is_an_error(tmp_path: Path) -> None:
    with Monitor(tmp_path / "qmp") as monitor, pytest.raises(MonitorError, match="no connection"):
        monitor.execute("query-status")


def test_devices_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "devices.json"
    rows = [
        {"name": "edu0", "kind": "edu", "bus": "pci", "address": "0000:01:00.0"},
        {"name": "nvme0", "kind": "nvme", "bus": "pci", "address": "0000:02:00.1"},
    ]
    path.write_text(json.dumps(rows))
    monkeypatch.setenv("VFIO_USER_DEVICES", str(path))
    assert [item.name for item in inside.devices()] == ["edu0", "nvme0"]
    assert inside.device("nvme") == inside.device("nvme0") == inside.devices("nvme")[0]
    assert inside.device("nvme").slot == "0000:02:00"
    with pytest.raises(GuestError, match=r"no device 'igb0', but edu0, nvme0.*--device igb"):
        inside.device("igb0")


def test_outside_of_a_guest_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VFIO_USER_DEVICES", raising=False)
    assert not inside.in_guest()
    with pytest.raises(inside.NotInGuestError, match="vfio-user guest"):
        inside.devices()
