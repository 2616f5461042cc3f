"""A device watched beside the process that drives it."""

from __future__ import annotations

import contextlib
import io
import json

from tests.guest.driven import driven_edu
from vfio_user import testing
from vfio_user.cli import main
from vfio_user.inventory.observe import observe
from vfio_user.kernel import sysfs


def watch(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["watch", *words]) == 0
    print(out.getvalue())
    return out.getvalue()


def test_what_is_seen_beside_a_driver() -> None:
    with driven_edu(monitor=True) as driven:
        function = sysfs.pci_function(driven.address)
        before = observe(function)
        (opener,) = before.openers
        assert opener.pid == driven.process.pid
        assert "python" in opener.command
        assert before.status["driver"] == "vfio-pci"
        assert "master" in before.status["command"]
        assert before.status["power"] == "D0"
        assert driven.factorial(5) == 120
        after = observe(function)
        (name,) = (name for name in after.interrupts if name.startswith("vfio-"))
        assert after.interrupts[name] == before.interrupts[name] + 1
        inside = after.inside
        assert inside is not None
        assert (inside["driver"], inside["mappings"], inside["pid"]) == ("Edu", 1, driven.process.pid)
        assert inside["memory"]["state"] == "live"
        assert inside["mapped_bytes"] == 4096
        registers = {row["name"]: row["value"] for row in after.registers}
        assert (registers["identification"], registers["factorial"]) == (0x010000ED, 120)
        assert driven.factorial(6) == 720


def test_watch_draws_it() -> None:
    with driven_edu(monitor=True) as driven:
        text = watch(driven.address, "--count", "2", "--interval", "0.2")
        for words in ("vfio-pci", "the driver's process", "Edu", "vfio-msi", "identification", "live, lock free"):
            assert words in text
        for line in watch(driven.address, "--count", "2", "--interval", "0.2", "--json").splitlines():
            assert json.loads(line)["inside"]["driver"] == "Edu"
        assert driven.factorial(5) == 120


def test_without_a_monitor_it_says_what_is_not_seen() -> None:
    with driven_edu(monitor=False) as driven:
        seen = observe(sysfs.pci_function(driven.address))
        assert seen.inside is None
        assert seen.registers or any("iomem=relaxed" in each for each in seen.notes)
        assert driven.factorial(5) == 120


def test_a_device_that_nobody_uses() -> None:
    address = testing.device("nvme").address
    assert "nobody has it open" in watch(address, "--count", "1")
