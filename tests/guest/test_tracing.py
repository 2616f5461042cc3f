"""A trace of real devices: what is in it, and that it opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import testing
from vfio_user.cli import main
from vfio_user.drivers.edu import Edu

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/edu_factorial.py"


def test_a_session_with_edu(iommu_mode: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    address = testing.device("edu").address
    with nothing_left(), vfio_user.trace(file) as trace:
        pci = vfio_user.open(address, mode=iommu_mode)
        with pci, Edu(pci) as edu, edu.alloc() as buffer:
            edu.copy_to_device(buffer[:16])
            assert edu.factorial(5) == 120
            trace.mark("reset")
            pci.reset()
    found: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    by = {
        category: [each for each in found if each.get("cat") == category]
        for category in {each.get("cat") for each in found}
    }
    assert {"register", "ioctl", "dma", "interrupt", "file", "reset", "counter", "mark"} <= set(by)
    assert [each["name"] for each in by["interrupt"]].count(f"{pci.name} MSI 0") == 2
    names = [each["name"] for each in by["register"]]
    factorial = names.index("write32 0x8")
    assert by["register"][factorial]["args"]["value"] == "0x5"
    assert names.index("read32 0x8") > factorial
    mapped = next(each for each in by["dma"] if "_MAP" in each["name"] and "UNMAP" not in each["name"])
    assert mapped["args"]["result"] == 0
    assert {"iova", "flags"} <= set(mapped["args"])
    (mark,) = by["mark"]
    (reset,) = (each for each in by["ioctl"] if each["name"] == "VFIO_DEVICE_RESET")
    assert mark["ts"] < reset["ts"]
    assert reset["args"]["device"] == pci.name
    for each in found:
        assert each["ph"] == "M" or each["ts"] > 0


def test_an_example_under_the_command(tmp_path: Path) -> None:
    file = testing.output() / "edu-trace.json"
    assert main(["trace", str(file), str(EXAMPLE), testing.device("edu").address]) == 0
    assert any(each["name"] == "write64 0x98" for each in json.loads(file.read_text())["traceEvents"])
    assert main(["--trace", str(tmp_path / "reset.json"), "reset", testing.device("nvme").address, "--function"]) == 0
    assert "VFIO_DEVICE_RESET" in (tmp_path / "reset.json").read_text()
