"""The tool as a person uses it: on a terminal, in colour, with Ctrl-C. What appears is kept beside the results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.driven import bind_again, driven_edu, wait_for
from tests.guest.terminal import CTRL_C, Terminal
from vfio_user import binding, testing
from vfio_user.drivers.edu import Edu
from vfio_user.kernel import sysfs
from vfio_user.pci import Command

GREEN = "\x1b[32m"
PROGRAM = """
import sys, vfio_user
from vfio_user.drivers.edu import Edu
with vfio_user.open(sys.argv[1]) as pci, Edu(pci) as edu, edu.alloc() as buffer:
    print("transferring", flush=True)
    while True:
        edu.copy_to_device(buffer[:4000])
"""


def run(*words: str) -> Terminal:
    return Terminal(testing.output() / "terminal" / f"{words[0]}.cast", *words)


@pytest.fixture
def edu() -> Iterator[str]:
    """An edu that must be as before afterwards: bound, closed, and working."""
    address = testing.devices("edu")[0].address
    yield address
    assert sysfs.pci_function(address).driver == "vfio-pci"
    with vfio_user.open(address) as pci:
        assert not pci.config.command & Command.MASTER
        with Edu(pci) as driver:
            assert driver.factorial(5) == 120


def test_list() -> None:
    with run("list") as terminal:
        assert terminal.finish() == 0
        assert GREEN in terminal.raw
        for device in testing.devices():
            assert device.address in terminal.text
        assert max(map(len, terminal.text.splitlines())) <= 110


def test_tree() -> None:
    with run("tree") as terminal:
        assert terminal.finish() == 0
        assert "hot reset below" in terminal.text
        assert "├── " in terminal.text


def test_doctor(edu: str) -> None:
    with run("doctor", edu) as terminal:
        assert terminal.finish() in (0, 1), "warnings at most"
        assert "ok" in terminal.text
        assert "Nothing is in the way" in terminal.text
        assert "\x1b[" in terminal.raw


def test_watch_ends_by_ctrl_c_and_disturbs_nobody(edu: str) -> None:
    with driven_edu(monitor=True) as driven, run("watch", edu, "--interval", "0.2") as terminal:
        terminal.expect("the driver's process")
        terminal.expect("identification")
        assert driven.factorial(5) == 120
        terminal.expect("0x00000078")
        terminal.press(CTRL_C)
        assert terminal.finish() == 0
        assert driven.factorial(6) == 720


def test_bind_and_restore(edu: str) -> None:
    with run("unbind", edu) as terminal:
        assert terminal.finish() == 0
        assert "has no driver (was: vfio-pci)" in terminal.text
    assert sysfs.pci_function(edu).driver is None
    with run("bind", edu) as terminal:
        assert terminal.finish() == 0
        assert "is bound to vfio-pci" in terminal.text
        assert "/dev/vfio/" in terminal.text
    with run("restore") as terminal:
        assert terminal.finish() == 0
        assert edu in terminal.text
    with run("restore", "--list") as terminal:
        assert terminal.finish() == 0
        assert "nothing is recorded" in terminal.text


def test_ctrl_c_in_the_middle_of_a_transfer_leaves_the_device_clean(edu: str, tmp_path: Path) -> None:
    program, trace = tmp_path / "transfer.py", testing.output() / "terminal" / "transfer.json"
    program.write_text(PROGRAM)
    with run("trace", str(trace), str(program), edu) as terminal:
        terminal.expect("transferring")
        terminal.press(CTRL_C)
        assert terminal.finish() == 130
        assert "interrupted" in terminal.text
        assert "Traceback" not in terminal.text
    assert trace.read_text().endswith("]}\n"), "the trace is whole all the same"


@pytest.mark.parametrize("words", [("unbind",), ("bind", "--driver", "nvme"), ("restore",)], ids=lambda words: words[0])
def test_ctrl_c_while_the_kernel_waits_for_who_has_it_open(edu: str, words: tuple[str, ...]) -> None:
    """No signal ends what the kernel does; the record stays, and puts the device back when the kernel is done."""
    function = sysfs.pci_function(edu)
    if words == ("restore",):
        (function.path / "driver/unbind").write_text(edu)
        vfio_user.bind(edu)
    before = "vfio-pci" if words != ("restore",) else None
    command = (*words, edu, "--force-in-use", "open", "--timeout", "40")
    with driven_edu(monitor=False) as driven:
        with Terminal(testing.output() / "terminal" / f"interrupted-{words[0]}.cast", *command) as terminal:
            wait_for(lambda: function.driver is None, 60)  # the kernel takes the driver's name away, then waits
            terminal.press(CTRL_C)
            assert terminal.finish() == 130
            assert "interrupted" in terminal.text
            assert "Traceback" not in terminal.text
        (record,) = binding.records()
        assert (str(record.address), record.before.driver) == (edu, before)
        assert driven.factorial(5) == 120, "the driver still has it"
    with run("restore") as terminal:
        assert terminal.finish() == 0
        # The kernel may have come to what undid it by then.
        assert "again" in terminal.text or "was back already" in terminal.text
    assert function.driver == before
    assert binding.records() == ()
    if before is None:
        bind_again(edu)
