"""The lock, windows and the fault handler as C programs, at full speed and under ThreadSanitizer; needs only gcc."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "_cdefs" / "mmio"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# fences are no operations that ThreadSanitizer knows; it is told nothing wrong by leaving them out
SANITIZER = ["-O1", "-g", "-fsanitize=thread", "-Wno-error=tsan"]
LOCK = ["lock.c", "reader.c"]
WINDOW = [*LOCK, "window.c", "zap.c", "fault.c"]

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def compile_(program: str, sources: list[str], *options: str, folder: Path = SOURCES) -> Path:
        target = tmp_path / program
        files = [str(HERE / f"{program}.c"), *(str(folder / source) for source in sources)]
        command = ["gcc", "-O2", *WARNINGS, *options, f"-I{folder}", "-pthread", *files, "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    return compile_


def run(program: Path, *arguments: str, sanitized: bool = False) -> subprocess.CompletedProcess[str]:
    # ThreadSanitizer of this age does not know the kernel's wider address randomisation
    prefix = ["setarch", "-R"] if sanitized else []
    return subprocess.run([*prefix, str(program), *arguments], capture_output=True, text=True, timeout=100)


def figures(line: str) -> dict[str, int]:
    words = line.split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.timeout(120)
def test_lock_at_full_speed(build: Build) -> None:
    done = run(build("lock_stress", LOCK), "3")
    assert done.returncode == 0, done.stdout
    assert all(count > 0 for count in figures(done.stdout).values()), done.stdout


@pytest.mark.timeout(120)
def test_lock_under_thread_sanitizer(build: Build) -> None:
    done = run(build("lock_stress", LOCK, *SANITIZER), "4", sanitized=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    assert all(count > 0 for count in figures(done.stdout).values()), done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("0, memory_order_release) & SLOT_WAITED", "0, memory_order_relaxed) & SLOT_WAITED"),
        ("mine && atomic_load(&slot->word)", "mine && atomic_load_explicit(&slot->word, memory_order_relaxed)"),
    ],
    ids=["unlock", "drain"],
)
def test_the_sanitizer_would_notice(build: Build, tmp_path: Path, right: str, wrong: str) -> None:
    """Negative control: the same run on a lock with one order too weak is reported."""
    folder = tmp_path / "weak"
    shutil.copytree(SOURCES, folder)
    changed = 0
    for name in ("lock.h", "lock.c"):
        text = (folder / name).read_text()
        changed += text.count(right)
        (folder / name).write_text(text.replace(right, wrong))
    assert changed == 1
    done = run(build("lock_stress", LOCK, *SANITIZER, folder=folder), "2", sanitized=True)
    assert "data race" in done.stderr


def test_more_threads_than_slots(build: Build) -> None:
    """With room for 12 threads, not 8 million: refused by name, and let in when another has ended."""
    done = run(build("slots_full", LOCK, "-DLOCK_FIRST_CHUNK=4u", "-DLOCK_CHUNKS=3u"))
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize("delay", ["0", "200"], ids=["", "race wide open"])
def test_windows_at_full_speed(build: Build, delay: str) -> None:
    done = run(build("window_stress", WINDOW), "3", delay)
    assert done.returncode == 0, done.stdout
    assert figures(done.stdout)["cycles"] > 10, done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize("delay", ["0", "200"], ids=["", "race wide open"])
def test_windows_under_thread_sanitizer(build: Build, delay: str) -> None:
    done = run(build("window_stress", WINDOW, *SANITIZER), "4", delay, sanitized=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
