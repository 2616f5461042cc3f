"""The cache: built once, never half, healed when damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vfio_user.testing import cache


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "vfio-user"


class Builder:
    """Build an entry of one file, and count."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, place: Path) -> None:
        self.times += 1
        (place / "sub").mkdir()
        (place / "sub" / "file").write_text("content")


def test_an_entry_is_built_once() -> None:
    build = Builder()
    first = cache.entry("kind", "key", build)
    assert cache.entry("kind", "key", build) == first
    assert (build.times, (first / "sub/file").read_text()) == (1, "content")


def test_default_place_is_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache/vfio-user"


def _truncate(place: Path) -> None:
    (place / "sub/file").write_text("cont")


def _remove_file(place: Path) -> None:
    (place / "sub/file").unlink()


def _remove_marker(place: Path) -> None:
    (place / ".complete").unlink()


def _empty_marker(place: Path) -> None:
    (place / ".complete").write_text("")


@pytest.mark.parametrize("damage", [_truncate, _remove_file, _remove_marker, _empty_marker])
def test_a_damaged_entry_is_built_again(damage: object) -> None:
    assert callable(damage)
    build = Builder()
    place = cache.entry("kind", "key", build)
    damage(place)
    assert (cache.entry("kind", "key", build) / "sub/file").read_text() == "content"
    assert build.times == 2


def test_a_failed_build_leaves_nothing(home: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").write_text("")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        cache.entry("kind", "key", fail)
    assert [path.name for path in (home / "kind").iterdir()] == [".key.lock"]
    assert cache.entry("kind", "key", Builder()).is_dir()


def test_what_a_killed_build_left_is_removed(home: Path) -> None:
    (home / "kind" / ".key.tmp.old").mkdir(parents=True)
    cache.entry("kind", "key", Builder())
    assert sorted(path.name for path in (home / "kind").iterdir()) == [".key.lock", "key"]


def test_two_builders_at_once_build_once() -> None:
    build = Builder()
    threads = [threading.Thread(target=cache.entry, args=("kind", "key", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.times == 1


def test_keys_become_file_names() -> None:
    assert cache.entry("kind", "a/b c:1~2", Builder()).name == "a_b_c_1~2"


def test_entries_are_the_complete_ones() -> None:
    good = cache.entry("kind", "1-x", Builder())
    _truncate(cache.entry("kind", "2-x", Builder()))
    cache.entry("kind", "3-y", Builder())
    assert cache.entries("kind", "*-x") == [good]


def test_digest_tells_parts_apart() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("ab") == cache.digest(b"ab")


def test_an_answer_is_kept_for_its_age() -> None:
    answers = iter(["one", "two"])
    assert cache.remembered("name", 60.0, lambda: next(answers)) == "one"
    assert cache.remembered("name", 60.0, lambda: next(answers)) == "one"
    assert cache.remembered("name", 0.0, lambda: next(answers)) == "two"
