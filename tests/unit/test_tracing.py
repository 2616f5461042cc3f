"""Traces: what is in them, what they cost when nobody asks, and that they end."""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import MSI, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.forking import in_child
from vfio_user import PciDevice, Program, _mmio
from vfio_user.cli import main
from vfio_user.errors import BoundsError, BusyError, ClosedError, VfioIoctlError, VfioOSError
from vfio_user.kernel import tracing

Event = dict[str, Any]


def events(path: Path) -> list[Event]:
    found: list[Event] = json.loads(path.read_text())["traceEvents"]
    return found


def of(path: Path, category: str) -> list[Event]:
    return [each for each in events(path) if each.get("cat") == category]


def test_register_accesses(pci: PciDevice, tmp_path: Path) -> None:
    bar, file = pci.bar(0), tmp_path / "trace.json"
    bar.write32(0x10, 1)
    with vfio_user.trace(file) as trace:
        bar.write32(0x10, 0xABCD)
        assert bar.read32(0x10) == 0xABCD
        assert bar.read8(0x11) == 0xAB
        bar.write64(0x20, 1 << 63)
        assert bar.poll_until(0x10, 0xFF, 0xCD, 1.0) == 0xABCD
        with pytest.raises(BoundsError):
            bar.read32(1 << 40)
        bar.readinto(0, bytearray(64))
        bar.write_block(0x40, bytes(16), width=8)
        assert bar.run(Program([("read32", 0x10), ("write32", 0x10, 5)])) == [0xABCD]
        with bar.access() as mmio:
            assert mmio.read16(0x10) == 5
    bar.write32(0x10, 2)
    assert trace.lost == 0
    found = of(file, "register")
    assert [each["name"] for each in found] == [
        "write32 0x10",
        "read32 0x10",
        "read8 0x11",
        "write64 0x20",
        "poll32 0x10",
        "read block32 0x0",
        "write block64 0x40",
        "program 0x0",
        "read16 0x10",
    ]
    assert [each["args"].get("value") for each in found[:5]] == ["0xabcd", "0xabcd", "0xab", hex(1 << 63), "0xabcd"]
    assert [found[5]["args"]["bytes"], found[7]["args"]["steps"]] == [64, 2]
    assert {each["args"]["region"] for each in found} == {f"{ADDRESS} region 0"}
    assert all(each["dur"] >= 0 and each["tid"] == threading.get_native_id() for each in found)
    assert sorted(each["ts"] for each in found) == [each["ts"] for each in found]


def test_a_device_that_is_opened_meanwhile(device: FakeDevice, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with vfio_user.trace(file), vfio_user.open(ADDRESS, mode="type1v2") as pci:
        pci.bar(0).read32(0)
        with pci.irqs.msi.enable(2) as (vector, _):
            os.eventfd_write(device.eventfds[MSI, 0], 3)
            assert vector.drain() == 3
        with pci.dma_alloc(0x2000):
            pass
        assert pci.config.vendor_id == 0x1234
        pci.reset()
    assert len(of(file, "register")) == 1
    (interrupt,) = of(file, "interrupt")
    assert (interrupt["name"], interrupt["args"]) == (f"{ADDRESS} MSI 0", {"count": 3})
    requests = {each["name"]: each["args"] for each in of(file, "ioctl")}
    assert requests["VFIO_DEVICE_GET_INFO"]["flags"] == "reset|pci"
    assert requests["VFIO_DEVICE_SET_IRQS"]["device"] == ADDRESS
    assert "action_trigger" in requests["VFIO_DEVICE_SET_IRQS"]["flags"]
    assert (requests["VFIO_SET_IOMMU"]["argument"], requests["VFIO_SET_IOMMU"]["result"]) == (3, 0)
    mapped = next(each for each in of(file, "dma") if each["name"] == "VFIO_IOMMU_MAP_DMA")
    assert (mapped["args"]["size"], mapped["args"]["flags"]) == ("0x2000", "read|write")
    assert [each["args"]["value"] for each in of(file, "counter")][:2] == [0x2000, 0]
    reads = [each["args"] for each in of(file, "file") if each["name"] == "pread"]
    assert {"device": ADDRESS, "region": 7, "offset": "0x0", "size": 2, "value": "0x1234"} in reads
    assert {"reset", "locks", "memory taken away"} <= {each["name"] for each in of(file, "reset")}


def test_errors_are_named(device: FakeDevice, kernel: FakeKernel, pci: PciDevice, tmp_path: Path) -> None:
    kernel.failing["VFIO_DEVICE_SET_IRQS"] = errno.ENOSPC
    with vfio_user.trace(tmp_path / "trace.json"), pytest.raises(VfioIoctlError):
        pci.irqs.msi.enable(1)
    (failed,) = of(tmp_path / "trace.json", "ioctl")
    assert failed["args"]["errno"] == "ENOSPC"


def test_marks_sections_and_threads(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with vfio_user.trace(file) as trace:
        assert "recording" in repr(trace)
        with trace.section("work", number=5):
            trace.mark("here")
        helper = threading.Thread(target=lambda: trace.mark("there"), name="helper")
        helper.start()
        helper.join()
    (section,), (here, there) = of(file, "section"), of(file, "mark")
    assert section["ts"] <= here["ts"] <= section["ts"] + section["dur"]
    assert section["args"] == {"number": 5}
    assert here["tid"] != there["tid"]
    names = {each["tid"]: each["args"]["name"] for each in events(file) if each["name"] == "thread_name"}
    assert names[here["tid"]] == "MainThread"


def test_what_comes_too_fast_is_counted(pci: PciDevice, tmp_path: Path) -> None:
    file, bar = tmp_path / "trace.json", pci.bar(0)
    with vfio_user.trace(file, records=10) as trace:
        for _ in range(100):
            bar.read32(0)
    assert trace.lost >= 80
    assert len(of(file, "register")) + trace.lost == 100
    assert any("were lost" in each["name"] for each in of(file, "trace"))


def test_one_at_a_time_and_nothing_stays(pci: PciDevice, tmp_path: Path) -> None:
    first = vfio_user.trace(tmp_path / "first.json")
    with first:
        with pytest.raises(BusyError, match="one at a time"), vfio_user.trace(tmp_path / "second.json"):
            pass
        with pytest.raises(BusyError):
            _mmio.trace_start(1)
    assert tracing.sink is None
    with pytest.raises(ClosedError, match="make another"), first:
        pass
    with pytest.raises(VfioOSError, match="ENOENT"), vfio_user.trace(tmp_path / "nowhere/trace.json"):
        pass
    assert tracing.sink is None
    assert _mmio.trace_drain() == (b"", [], 0)
    pci.bar(0).read32(0)
    assert _mmio.trace_drain() == (b"", [], 0)


def test_the_bodys_error_goes_on_and_the_file_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"

    def fail() -> None:
        with vfio_user.trace(file) as trace:
            trace.mark("before")
            raise KeyError("no")

    with pytest.raises(KeyError):
        fail()
    assert [each["name"] for each in of(file, "mark")] == ["before"]


def test_a_disk_that_is_full_is_told_at_the_end() -> None:
    done: list[int] = []

    def work() -> None:
        with vfio_user.trace("/dev/full") as trace:
            for _ in range(1000):
                trace.mark("x" * 100)
            done.append(1)

    with pytest.raises(VfioOSError, match="ENOSPC"):
        work()
    assert done == [1]
    assert tracing.sink is None
    assert _mmio.trace_drain() == (b"", [], 0)


def test_a_forked_child_records_nothing(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"

    def child() -> bool:
        return tracing.sink is None

    with vfio_user.trace(file) as trace:
        assert in_child(child) == "True"
        trace.mark("parent")
    assert [each["name"] for each in of(file, "mark")] == ["parent"]


def test_the_record_is_what_python_unpacks(pci: PciDevice) -> None:
    _mmio.trace_start(4)
    try:
        pci.bar(0).write16(6, 0x1234)
        data, names, lost = _mmio.trace_drain()
    finally:
        _mmio.trace_stop()
    begin, end, *rest = struct.unpack("=QQQQIIHHI", data)
    assert begin <= end
    assert rest == [6, 0x1234, threading.get_native_id(), 0, 1, 2, 0]
    assert (names, lost) == ([f"{ADDRESS} region 0"], 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program, file = tmp_path / "program.py", tmp_path / "trace.json"
    program.write_text("import sys\nprint(__name__, sys.argv[1:])\nsys.exit(len(sys.argv))\n")
    before = list(sys.argv)
    assert main(["trace", str(file), str(program), "a", "-b"]) == 3
    assert sys.argv == before
    out = capsys.readouterr()
    assert out.out == "__main__ ['a', '-b']\n"
    assert "perfetto" in out.err
    assert events(file)
    assert main(["trace", str(file)]) == 2
    assert main(["trace", str(file), str(tmp_path / "missing.py")]) == 2
