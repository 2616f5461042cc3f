"""KVM is used where it was seen to work, and asked for once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vfio_user.testing import accel


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/kvm")
    (tmp_path / "qemu").touch()
    return str(tmp_path / "qemu")


def unwanted() -> bool:
    raise AssertionError("nothing to probe")


@pytest.mark.parametrize("wish", ["tcg", "kvm"])
def test_a_wish_is_obeyed(program: str, wish: str) -> None:
    assert accel.choose(wish, program, unwanted) == wish


def test_without_kvm_there_is_nothing_to_probe(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert accel.choose("auto", program, unwanted) == "tcg"


@pytest.mark.parametrize(("works", "chosen"), [(True, "kvm"), (False, "tcg")])
def test_the_probe_decides_once(program: str, works: bool, chosen: str) -> None:
    assert accel.choose("auto", program, lambda: works) == chosen
    assert accel.choose("auto", program, unwanted) == chosen


def test_another_qemu_is_another_question(program: str) -> None:
    assert accel.choose("auto", program, lambda: False) == "tcg"
    os.utime(program, (1, 1))
    assert accel.choose("auto", program, lambda: True) == "kvm"
