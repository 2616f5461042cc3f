"""One look at a device from outside, on files that stand for the kernel's; and what ``watch`` draws of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest

from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import header
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user.cli import main
from vfio_user.inventory import observe as module
from vfio_user.inventory.observe import observe
from vfio_user.kernel import sysfs

_INTERRUPTS = """\
            CPU0       CPU1
  4:          9          0  IR-IO-APIC    4-edge      ttyS0
 29:          3          4  IR-PCI-MSIX-0000:01:00.0    0-edge      vfio-msix[0](0000:01:00.0)
 30:          1          0  IR-PCI-MSIX-0000:01:00.0    1-edge      vfio-msix[1](0000:01:00.0)
 31:          5          5  IR-PCI-MSIX-0000:02:00.0    0-edge      vfio-msix[0](0000:02:00.0)
NMI:          0          0   Non-maskable interrupts
ERR:          0
"""
_STATUS = "Name:\tpython\nVmLck:\t      64 kB\nVmPin:\t    2048 kB\nThreads:\t1\n"
_LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n{}\n"
_LOCKED = "Max locked memory         8388608              8388608              bytes"


@pytest.fixture
def function(tree: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sysfs.PciFunction:
    """A function that process 77 has open, below a root that has ``/proc`` and ``/dev`` too."""
    folder = tree.add(ADDRESS, driver="vfio-pci", group=7, vfio_device="vfio0")
    (folder / "config").write_bytes(header((0x1234, 0x11E8, 0xFF0000), 256))
    (folder / "power_state").write_text("D0\n")
    (folder / "power").mkdir()
    (folder / "power/runtime_status").write_text("active\n")
    (folder / "aer_dev_nonfatal").write_text("Undefined 0\nTOTAL_ERR_NONFATAL 2\n")
    proc = tmp_path / "proc"
    (proc / "77/fd").mkdir(parents=True)
    (proc / "interrupts").write_text(_INTERRUPTS)
    (proc / "77/cmdline").write_bytes(b"python\0driver.py\0")
    (proc / "77/status").write_text(_STATUS)
    (proc / "77/limits").write_text(_LIMITS.format(_LOCKED))
    (proc / "77/fd/3").symlink_to("/dev/vfio/7")
    (proc / "self").mkdir()
    (proc / "5").mkdir()  # has no fd folder: it ended
    monkeypatch.setattr(module, "PROC", proc)
    monkeypatch.setattr(module, "expected_nodes", lambda function: [(Path("/dev/vfio/7"), "1:2")])
    return sysfs.pci_function(ADDRESS)


def test_what_is_seen(function: sysfs.PciFunction) -> None:
    seen = observe(function)
    assert seen.interrupts == {"vfio-msix[0](0000:01:00.0)": 7, "vfio-msix[1](0000:01:00.0)": 1}
    (opener,) = seen.openers
    assert (opener.pid, opener.command, opener.pinned, opener.limit) == (77, "python driver.py", 2112 << 10, 8 << 20)
    assert seen.status["command"] == "io memory"
    assert seen.status["power"] == "D0"
    assert seen.status["errors"] == "nonfatal 2"
    assert seen.inside is None
    assert "resource0" in " ".join(seen.notes), "there is nothing to map"


def test_a_device_without_power_is_not_woken(function: sysfs.PciFunction) -> None:
    (function.path / "power_state").write_text("D3cold\n")
    (function.path / "power/runtime_status").write_text("suspended\n")
    (function.path / "config").unlink()
    seen = observe(function)
    assert seen.status["power"] == "D3cold, suspended"
    assert "command" not in seen.status
    assert any("sleeps (suspended)" in each for each in seen.notes)


def test_who_answers_must_have_it_open(function: sysfs.PciFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ask", lambda name: {"pid": 78})
    seen = observe(function)
    assert seen.inside is None
    assert "not believed" in seen.notes[0]


def test_watch(function: sysfs.PciFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {
        "pid": 77,
        "driver": "Edu",
        "mode": "type1v2",
        "health": "ok",
        "resets": 3,
        "memory": {"state": "zapped", "reason": "reset", "holders": []},
        "vectors": {"MSI": 1},
        "mappings": 1,
        "mapped_bytes": 4096,
        "dma": [{"iova": 0x1000, "size": 4096}],
    }
    row = {"map": "EduRegisters", "name": "status", "width": 32, "value": 0x80, "text": "computing=0", "note": ""}
    monkeypatch.setattr(module, "ask", lambda name: {**inside, "registers": [row]})
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["watch", ADDRESS, "--count", "2", "--interval", "0.05"]) == 0
    text = out.getvalue()
    for words in ("7 interrupts", "python driver.py", "Edu, type1v2, ok", "zapped (reset), lock free", "0x00000080"):
        assert text.count(words) == 2, words
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        assert main(["watch", ADDRESS, "--count", "2", "--interval", "0.05", "--json"]) == 0
    assert [json.loads(line)["inside"]["resets"] for line in lines.getvalue().splitlines()] == [3, 3]
    assert main(["watch", ADDRESS, "--interval", "0"]) == 2
    assert main(["watch", ADDRESS, "--count", "0"]) == 2


def test_others_are_hidden_from_who_is_not_root(function: sysfs.PciFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    (module.PROC / "77/fd/3").unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert any("only root" in each for each in observe(function).notes)
