"""``vfio-user guest`` for real: boots guests from this machine, also ones that do not end well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user.testing import GuestCrashedError, GuestTimeoutError
from vfio_user.testing.plugin import GuestRunner

pytestmark = [pytest.mark.timeout(240), pytest.mark.vfio_guest(kernel="6.12", devices=["edu"])]

LINES = 20000


def test_command_output_and_files_come_back(tmp_path: Path) -> None:
    script = (
        f"pwd; id -u; seq {LINES}; echo to-stderr >&2; echo kept >$VFIO_USER_OUTPUT/file; echo lost >here; "
        "ls /sys/bus/pci/drivers/vfio-pci | grep -c 0000; exit 7"
    )
    words = ["--kernel", "6.12", "--device", "edu+edu", "--output", "results", "--", "sh", "-c", script]
    done = subprocess.run(
        [sys.executable, "-m", "vfio_user.cli", "guest", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    numbers = "".join(f"{number}\n" for number in range(1, LINES + 1))
    assert done.stdout == f"{tmp_path}\n0\n{numbers}2\n"
    assert "to-stderr\n" in done.stderr
    assert done.returncode == 7
    assert (tmp_path / "results/file").read_text() == "kept\n"
    assert "Power down" in (tmp_path / "results/guest/console").read_text()
    assert not (tmp_path / "here").exists()


def test_a_panic_is_an_error_that_shows_it(vfio_guest: GuestRunner) -> None:
    with pytest.raises(GuestCrashedError, match="without a result") as caught:
        vfio_guest(["sh", "-c", "echo before; echo c >/proc/sysrq-trigger"], timeout=200)
    assert "Kernel panic - not syncing: sysrq triggered crash" in str(caught.value)
    assert (vfio_guest.output / "guest/stdout").read_text() == "before\n"


def test_a_hang_is_stopped_at_the_deadline_and_says_where_it_is(vfio_guest: GuestRunner) -> None:
    with pytest.raises(GuestTimeoutError, match=r"(.|\n)*of sleep613: state S in hrtimer_nanosleep"):
        vfio_guest(["sh", "-c", "echo before; sleep 613"], timeout=40)
    assert (vfio_guest.output / "guest/stdout").read_text() == "before\n"
