"""The runner, with a small program in QEMU's place: results, crashes, hangs."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from vfio_user.testing import accel, initramfs, kernels, machines, qemu, roots, watch
from vfio_user.testing.errors import GuestCrashedError, GuestSetupError, GuestSpecError, GuestTimeoutError
from vfio_user.testing.guest import Guest, run

# Finds the output folder and the console in its arguments, as QEMU would, and plays the guest's part.
FAKE = """#!/bin/sh
for argument in "$@"; do
    case $argument in
    local,id=output,path=*) control=${argument#local,id=output,path=}; control=${control%%,security*}/guest ;;
    file:*) console=${argument#file:} ;;
    esac
done
"""


class Machine:
    """Stands for QEMU: `plays` says what the guest does."""

    def __init__(self, place: Path) -> None:
        self.program = place / "qemu"

    def plays(self, script: str) -> None:
        self.program.write_text(FAKE + script)
        self.program.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(watch, "_REPORT", 0.3)
    fake = Machine(tmp_path)
    monkeypatch.setattr(qemu, "find", lambda machine: str(fake.program))
    monkeypatch.setattr(
        kernels, "resolve", lambda name, machine: kernels.Kernel(tmp_path / "vmlinuz", name, None, name)
    )
    monkeypatch.setattr(kernels, "busybox", lambda machine: tmp_path / "busybox")
    monkeypatch.setattr(accel, "choose", lambda wish, program, probe: "tcg")
    monkeypatch.setattr(initramfs, "build", lambda kernel, busybox: tmp_path / "initramfs")
    return fake


END = "echo >$control/started; echo log >$control/dmesg; echo 0 >$control/rc"


def test_a_result_has_everything(machine: Machine, tmp_path: Path) -> None:
    machine.plays(
        "echo booted >$console; echo >$control/started; echo out >>$control/stdout; echo err >>$control/stderr;"
        "echo log >$control/dmesg; echo 7 >$control/rc"
    )
    out, err = io.BytesIO(), io.BytesIO()
    result = run(Guest(), ["true"], output=tmp_path / "results", stdout=out, stderr=err)
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "err\n")
    assert (result.console, result.kernel_log) == ("booted\n", "log\n")
    assert (out.getvalue(), err.getvalue()) == (b"out\n", b"err\n")
    assert 0 < result.boot_seconds <= result.seconds
    assert (tmp_path / "results/guest/console").read_text() == "booted\n"


def test_output_comes_as_it_is_written(machine: Machine) -> None:
    class Stream(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes is all that comes
            times.append(time.monotonic())
            return super().write(data)

    times: list[float] = []
    machine.plays(f"echo 1 >>$control/stdout; sleep 0.5; echo 2 >>$control/stdout; {END}")
    stream = Stream()
    run(Guest(), ["true"], stdout=stream)
    assert stream.getvalue() == b"1\n2\n"
    assert times[-1] - times[0] > 0.3


def test_much_output_is_whole_and_in_order(machine: Machine) -> None:
    machine.plays(f"seq 200000 >>$control/stdout; {END}")
    assert run(Guest(), ["true"]).stdout == "".join(f"{number}\n" for number in range(1, 200001))


def test_no_exit_code_is_a_crash_that_shows_the_console(machine: Machine, tmp_path: Path) -> None:
    machine.plays("for line in $(seq 100); do echo line $line >>$console; done; echo Kernel panic >>$console")
    with pytest.raises(GuestCrashedError, match="without a result") as caught:
        run(Guest(), ["true"], output=tmp_path / "results")
    assert "Kernel panic" in str(caught.value)
    assert "line 100" in str(caught.value)
    assert "line 50\n" not in str(caught.value)
    assert "line 50\n" in caught.value.console
    assert "Kernel panic" in (tmp_path / "results/guest/console").read_text()


def test_a_panic_is_shown_however_long_its_report_is(machine: Machine) -> None:
    machine.plays(
        "for line in $(seq 50); do echo line $line >>$console; done; echo 'Kernel panic - not syncing: x' >>$console;"
        " for line in $(seq 100); do echo frame $line >>$console; done"
    )
    with pytest.raises(GuestCrashedError) as caught:
        run(Guest(), ["true"])
    assert "---\nKernel panic - not syncing: x\nframe 1\n" in str(caught.value)
    assert "frame 100\n" in str(caught.value)


def test_half_an_exit_code_is_a_crash(machine: Machine) -> None:
    machine.plays(": >$control/rc; echo gone >$console")
    with pytest.raises(GuestCrashedError):
        run(Guest(), ["true"])


def test_qemus_own_crash_is_told(machine: Machine) -> None:
    machine.plays("echo booting >$console; echo 'qemu: assertion failed' >&2; exit 134")
    with pytest.raises(GuestCrashedError, match="QEMU ended with 134: qemu: assertion failed"):
        run(Guest(), ["true"])


def test_a_qemu_that_does_not_start_is_told(machine: Machine) -> None:
    machine.plays("echo \"'foo' is not a valid device model name\" >&2; exit 1")
    with pytest.raises(GuestSetupError, match="'foo' is not a valid device"):
        run(Guest(), ["true"])


def test_a_hang_ends_at_the_deadline(machine: Machine) -> None:
    machine.plays("echo stuck >$console; echo >$control/started; echo partial >$control/stdout; exec sleep 600")
    stream = io.BytesIO()
    begin = time.monotonic()
    with pytest.raises(GuestTimeoutError, match=r"did not end within 0\.5 s(.|\n)*stuck"):
        run(Guest(), ["true"], timeout=0.5, stdout=stream)
    assert time.monotonic() - begin < 5
    assert stream.getvalue() == b"partial\n"


def test_silence_is_a_hang(machine: Machine) -> None:
    machine.plays(
        "echo >$control/started; for n in 1 2 3; do echo $n >>$control/stdout; sleep 0.3; done; exec sleep 600"
    )
    stream = io.BytesIO()
    with pytest.raises(GuestTimeoutError, match=r"was silent for 0\.8 s"):
        run(Guest(), ["true"], timeout=60, silence=0.8, stdout=stream)
    assert stream.getvalue() == b"1\n2\n3\n"


def test_a_guest_that_does_not_boot_ends_early(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_BOOT", 0.3)
    machine.plays("exec sleep 600")
    with pytest.raises(GuestTimeoutError, match="did not boot"):
        run(Guest(), ["true"], timeout=60)


def test_a_result_counts_even_if_power_off_hangs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_POWER_OFF", 0.2)
    machine.plays(f"{END}; exec sleep 600")
    assert run(Guest(), ["true"]).returncode == 0


def test_an_old_result_is_not_taken(machine: Machine, tmp_path: Path) -> None:
    machine.plays(END)
    assert run(Guest(), ["true"], output=tmp_path / "results").returncode == 0
    machine.plays("exit 0")
    with pytest.raises(GuestCrashedError):
        run(Guest(), ["true"], output=tmp_path / "results")


def test_the_command_runs_as_it_is_written(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The fake runs the command itself, on this machine.
    machine.plays(f"env -i sh $control/command.sh >>$control/stdout; {END}")
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("SECRET", "no")
    command = ["sh", "-c", 'printf "%s|" "$@"; pwd; echo $CI:$SECRET:$MINE', "sh", "a b", "$HOME", "it's", "*"]
    result = run(Guest(), command, cwd=folder, environment={"MINE": "x y"})
    assert result.stdout == f"a b|$HOME|it's|*|{folder}\ntrue::x y\n"


def test_settings_reach_the_guest(machine: Machine, tmp_path: Path) -> None:
    machine.plays(f"cat $control/settings.sh $control/devices >>$control/stdout; {END}")
    result = run(Guest(devices=("edu", "nvme"), bind=False), ["true"])
    assert result.stdout == "BIND=0\nMODULES=\nedu0 edu pci 0000:00:04.0 00.0\nnvme0 nvme pci 0000:00:05.0 00.0\n"


def test_a_foreign_guest_sees_a_root_of_its_own(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.plays(f'cat $control/settings.sh $control/shares $control/command.sh; echo "$*" >$control/line; {END}')
    monkeypatch.setattr(roots, "root", lambda machine: tmp_path / "root")
    monkeypatch.setattr(roots, "extension", lambda machine, package: tmp_path / "extension")
    monkeypatch.setattr(kernels, "busybox", lambda machine: tmp_path / "busybox")
    monkeypatch.setenv("VIRTUAL_ENV", "/of/this/machine")
    output = tmp_path / "results"
    run(Guest(arch="s390x", accel="auto"), ["python3"], output=output, cwd=tmp_path)
    line = (output / "guest/line").read_text()
    assert f"local,id=host,path={tmp_path}/root,security_model=none,readonly=on" in line
    assert "virtio-9p-ccw,devno=fe.0.ff02,fsdev=host" in line
    assert "-accel tcg,thread=single" in line
    shares = dict(row.split() for row in (output / "guest/shares").read_text().splitlines())
    assert shares == {"work": str(tmp_path), "package": roots.PACKAGE, "extension": roots.EXTENSION}
    command = (output / "guest/command.sh").read_text()
    assert "VIRTUAL_ENV" not in command
    assert f"export PYTHONPATH={roots.EXTENSION}" in command
    assert "ORIGIN=" in (output / "guest/settings.sh").read_text()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"arch": "vax"}, "no architecture 'vax'.*arm64, s390x"),
        ({"iommu": "arm"}, "no IOMMU 'arm'"),
        ({"arch": "arm64", "iommu": "intel"}, "no IOMMU 'intel'; take one of smmuv3, none"),
        ({"memory": "lots"}, "not a size"),
        ({"memory": "16M"}, "at least 256M"),
        ({"cpus": 0}, "cpus must be at least 1"),
        ({"accel": "xen"}, "no accel 'xen'"),
        ({"devices": ("+",)}, "not a device"),
    ],
)
def test_bad_guests_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(GuestSpecError, match=reason):
        Guest(**fields)


def test_bad_calls_are_refused(machine: Machine) -> None:
    with pytest.raises(GuestSpecError, match="no command"):
        run(Guest(), [])
    with pytest.raises(GuestSpecError, match="timeout"):
        run(Guest(), ["true"], timeout=0)
    with pytest.raises(GuestSpecError, match="silence"):
        run(Guest(), ["true"], silence=-1)


def test_unknown_kernel_is_refused() -> None:
    with pytest.raises(GuestSpecError, match=r"no kernel '9\.9'.*6\.12"):
        kernels.resolve("9.9", machines.named("x86_64"))
    with pytest.raises(GuestSpecError, match=r"no kernel '6\.12' for s390x; take feature"):
        kernels.resolve("6.12", machines.named("s390x"))
