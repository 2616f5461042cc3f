"""``vfio-user guest``: the command line becomes a guest, its result an exit code."""

from __future__ import annotations

from typing import Any

import pytest

from vfio_user.cli import guest, main
from vfio_user.testing import Guest, GuestCrashedError, Result


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Guest, list[str], dict[str, Any]]]:
    calls: list[tuple[Guest, list[str], dict[str, Any]]] = []

    def run(spec: Guest, command: list[str], **options: Any) -> Result:
        calls.append((spec, command, options))
        return Result(3, "", "", "", "", 1.0, 1.0)

    monkeypatch.setattr(guest, "run", run)
    return calls


def test_exit_code_is_the_commands(ran: list[tuple[Guest, list[str], dict[str, Any]]]) -> None:
    assert main(["guest", "--", "ls", "-l"]) == 3
    assert ran[0][:2] == (Guest(), ["ls", "-l"])


def test_everything_can_be_said(ran: list[tuple[Guest, list[str], dict[str, Any]]]) -> None:
    words = (
        "--kernel 6.12 --topology T3 --device nvme,size=1G --iommu virtio --memory 4G --cpus 3 --accel tcg --no-bind"
    )
    assert main(["guest", *words.split(), "--env", "A=b=c", "--append", "x=1 y", "--timeout", "9", "--", "true"]) == 3
    spec, _, options = ran[0]
    assert spec == Guest(
        kernel="6.12",
        devices=("edu+edu", "nvme,size=1G"),
        iommu="virtio",
        memory="4G",
        cpus=3,
        accel="tcg",
        append="x=1 y",
        bind=False,
    )
    assert (options["environment"], options["timeout"]) == ({"A": "b=c"}, 9.0)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--topology", "T99"], "no topology 'T99'"),
        (["--env", "A"], "not NAME=VALUE"),
        (["--env", "=x"], "not NAME=VALUE"),
        (["--device", "nvme,size"], "not a property"),
        (["--memory", "1M"], "at least 256M"),
    ],
)
def test_bad_words_are_named(
    ran: list[tuple[Guest, list[str], dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    reason: str,
) -> None:
    assert main(["guest", *words, "--", "true"]) == 2
    assert reason in capsys.readouterr().err
    assert ran == []


def test_a_crash_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(*_: object, **__: object) -> Result:
        raise GuestCrashedError("went down", "Kernel panic - not syncing")

    monkeypatch.setattr(guest, "run", crash)
    assert main(["guest", "--", "true"]) == 2
    assert "Kernel panic - not syncing" in capsys.readouterr().err


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["guest"])
    assert "COMMAND" in capsys.readouterr().err
