"""The command line itself: help, completion, progress, interrupts."""

from __future__ import annotations

import argparse
import io
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from vfio_user.cli import COMMANDS, build_parser, main, progress


def parsers() -> dict[str, argparse.ArgumentParser]:
    (found,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(found.choices)


def test_every_command_teaches() -> None:
    """What it does, what each argument means, and how it is used."""
    assert set(parsers()) == set(COMMANDS)
    for name, parser in parsers().items():
        text = parser.format_help()
        assert parser.description, name
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{name} {action.dest}"
        assert len(text.splitlines()) > 8, name
    help_of_all = build_parser().format_help()
    for name in COMMANDS:
        assert f"    {name} " in help_of_all
    assert "a session:" in help_of_all


def test_only_the_command_that_is_asked_for_is_imported() -> None:
    code = "import sys; from vfio_user.cli import build_parser; build_parser(['--trace', 'guest', 'list'])"
    code += "; print([each for each in sys.modules if each.startswith('vfio_user.cli.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "vfio_user.cli.guest" not in done.stdout
    assert "vfio_user.cli.list" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_is_written(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name in text
    assert "/sys/bus/pci/devices" in text


def test_bash_completes_by_it() -> None:
    script = subprocess.run(
        [sys.executable, "-m", "vfio_user.cli", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    asked = """
COMP_WORDS=(vfio-user re); COMP_CWORD=1; _shtab_vfio_user 2>/dev/null; echo "${COMPREPLY[@]}"
COMP_WORDS=(vfio-user watch --in); COMP_CWORD=2; COMPREPLY=(); _shtab_vfio_user 2>/dev/null; echo "${COMPREPLY[@]}"
echo "$COMP_WORDBREAKS" | grep -c :
"""
    done = subprocess.run(["bash", "-c", script + asked], capture_output=True, text=True, timeout=60, check=False)
    commands, options, colons = done.stdout.splitlines()[:3]
    assert set(commands.split()) == {each for each in COMMANDS if each.startswith("re")}
    assert options.split() == ["--interval"]
    assert colons == "0", "an address is one word"


def test_progress_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET", 0.01)
    monkeypatch.setattr(progress, "_STEP", 0.01)
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    with progress.working("thinking"):
        time.sleep(0.1)
    assert plain.getvalue() == ""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.working("thinking"):
            time.sleep(0.2)
        shown = ""
        while select.select([master], [], [], 0.5)[0]:
            shown += os.read(master, 4096).decode()
    os.close(master)
    assert "thinking: 0 s (Ctrl-C ends it)" in shown
    assert shown.endswith("\r\x1b[K"), "nothing of it stays"


def test_what_is_done_quickly_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.working("thinking"):
            pass
        with pytest.raises(BlockingIOError):
            os.read(master, 1)
    os.close(master)


def test_an_interrupt_has_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        interrupt = KeyboardInterrupt()
        interrupt.add_note("the journal knows what it was")
        raise interrupt

    monkeypatch.setattr("vfio_user.cli.doctor.explain", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "vfio-user: interrupted\nthe journal knows what it was\n"
