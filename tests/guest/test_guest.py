"""The guest itself: devices are where its description says, bound, and the way out works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vfio_user import testing


def test_every_device_is_on_the_bus_and_bound() -> None:
    found = testing.devices()
    assert found
    for item in found:
        assert Path(f"/sys/bus/pci/devices/{item.address}/driver").resolve().name == "vfio-pci"


def test_kinds_are_what_they_say() -> None:
    ids = {
        "edu": "0x1234:0x11e8",
        "nvme": "0x1b36:0x0010",
        "ivshmem": "0x1af4:0x1110",
        "igb": "0x8086:0x10c9",
        "e1000e": "0x8086:0x10d3",
        "virtio-net": "0x1af4:0x1041",
        "virtio-blk": "0x1af4:0x1042",
    }
    for item in testing.devices():
        folder = Path(f"/sys/bus/pci/devices/{item.address}")
        shown = f"{(folder / 'vendor').read_text().strip()}:{(folder / 'device').read_text().strip()}"
        assert shown == ids[item.kind]


def test_functions_of_one_slot_share_it() -> None:
    _, second, third = testing.devices("edu")[:3]
    assert second.slot == third.slot
    assert (second.address[-1], third.address[-1]) == ("0", "1")


def test_group_node_is_there(vfio_device: Callable[[str], testing.GuestDevice]) -> None:
    address = vfio_device("edu").address
    group = Path(f"/sys/bus/pci/devices/{address}/iommu_group").resolve().name
    assert Path(f"/dev/vfio/{group}").is_char_device()


def test_unknown_device_is_named() -> None:
    with pytest.raises(testing.GuestError, match=r"no device 'floppy'.*edu0"):
        testing.device("floppy")


def test_monitor_answers() -> None:
    assert testing.qmp("query-status") == {"status": "running", "singlestep": False, "running": True} or (
        testing.qmp("query-status") == {"status": "running", "running": True}
    )
    assert "Host bridge" in testing.hmp("info pci")


def test_monitor_error_is_qemus() -> None:
    with pytest.raises(testing.MonitorError, match="no-such-device"):
        testing.qmp("device_del", id="no-such-device")


def test_host_files_are_not_changed_from_inside() -> None:
    here = Path(__file__)
    assert os.statvfs(here).f_blocks
    note = here.with_suffix(".note")
    note.write_text("stays in the guest's memory")
    assert note.read_text()
    assert Path("/proc/mounts").read_text().count("overlay / overlay") == 1
