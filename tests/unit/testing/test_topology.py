"""Devices: from a user's words to QEMU's arguments."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from vfio_user.testing import machines, topology
from vfio_user.testing.errors import GuestSpecError
from vfio_user.testing.topology import Device, Placed, parse_size, parse_slot, plan

SCRATCH = Path("/scratch")


def options(arguments: tuple[str, ...], model: str) -> list[dict[str, str]]:
    """Return the properties of each ``-device`` of a model."""
    found = []
    for flag, value in itertools.pairwise(arguments):
        name, *rest = value.split(",")
        if flag == "-device" and name == model:
            found.append(dict(part.split("=", 1) for part in rest))
    return found


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("64k", 65536), ("1M", 1 << 20), (" 2G ", 2 << 30), ("1t", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "64MB", "1 M", "0x10"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(GuestSpecError, match="is not a size"):
        parse_size(text)


def test_a_slot_is_read() -> None:
    assert parse_slot("edu+nvme,size=64M,serial=a=b") == (
        Device("edu"),
        Device("nvme", (("size", "64M"), ("serial", "a=b"))),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a device"),
        ("edu+", "is not a device"),
        ("a b", "is not a device"),
        ("nvme,size", "is not a property"),
        ("nvme,=1", "is not a property"),
        ("+".join(["edu"] * 9), "9 functions"),
    ],
)
def test_bad_slots(text: str, reason: str) -> None:
    with pytest.raises(GuestSpecError, match=reason):
        parse_slot(text)


def test_each_slot_has_its_own_slow_root_port() -> None:
    ports = options(plan(["edu", "edu"], SCRATCH).arguments, "pcie-root-port")
    assert [(port["id"], port["addr"], port["chassis"], port["slot"]) for port in ports] == [
        ("port0", "0x4", "1", "1"),
        ("port1", "0x5", "2", "2"),
    ]
    assert {port["x-speed"] for port in ports} == {"5"}


def test_ports_are_above_the_shares_of_a_machine_with_a_root_of_its_own() -> None:
    layout = plan(["edu"], SCRATCH, machine=machines.named("arm64"))
    (port,) = options(layout.arguments, "pcie-root-port")
    assert port["addr"] == "0x7", "slots 2 to 6: its root, the output, the folder, the package, the extension"
    assert layout.placed == (Placed("edu0", "edu", "0000:00:07.0", "00.0"),)


def test_names_count_by_kind_and_places_are_known() -> None:
    assert plan(["edu", "nvme", "edu+edu"], SCRATCH).placed == (
        Placed("edu0", "edu", "0000:00:04.0", "00.0"),
        Placed("nvme0", "nvme", "0000:00:05.0", "00.0"),
        Placed("edu1", "edu", "0000:00:06.0", "00.0"),
        Placed("edu2", "edu", "0000:00:06.0", "00.1"),
    )


def test_functions_of_one_slot() -> None:
    first, second = options(plan(["edu+edu"], SCRATCH).arguments, "edu")
    assert first == {"id": "edu0", "bus": "port0", "addr": "0.0", "multifunction": "on"}
    assert second == {"id": "edu1", "bus": "port0", "addr": "0.1"}


def test_igb_functions_find_their_neighbour() -> None:
    first, second = options(plan(["igb+igb"], SCRATCH).arguments, "igb")
    assert first["x-pcie-ari-nextfn-1"] == "on"
    assert "x-pcie-ari-nextfn-1" not in second


def test_without_a_port_a_device_sits_on_the_root_bus() -> None:
    layout = plan(["edu", "edu,port=no"], SCRATCH)
    assert options(layout.arguments, "edu")[1] == {"id": "edu1", "bus": "pcie.0", "addr": "0x5.0"}
    assert layout.placed[1] == Placed("edu1", "edu", "-", "0000:00:05.0")
    assert len(options(layout.arguments, "pcie-root-port")) == 1


def test_ports_can_be_off_by_default() -> None:
    layout = plan(["edu+edu", "edu,port=yes"], SCRATCH, ports=False)
    assert [item.port for item in layout.placed] == ["-", "-", "0000:00:05.0"]
    assert [item.function for item in layout.placed] == ["0000:00:04.0", "0000:00:04.1", "00.0"]


@pytest.mark.parametrize("text", ["edu,port=no+edu,port=yes", "edu,port=maybe"])
def test_bad_ports(text: str) -> None:
    with pytest.raises(GuestSpecError, match="port"):
        plan([text], SCRATCH)


def test_nvme_has_a_sparse_disk_and_a_serial() -> None:
    layout = plan(["nvme,size=64M"], SCRATCH)
    assert layout.files == (("/scratch/nvme0-disk.raw", 64 << 20),)
    (nvme,) = options(layout.arguments, "nvme")
    assert (nvme["serial"], nvme["drive"]) == ("VU-nvme0", "nvme0-disk")
    assert "size" not in nvme


def test_nvme_without_a_disk() -> None:
    layout = plan(["nvme,size=1G,null=on"], SCRATCH)
    assert layout.files == ()
    assert "null-co,node-name=nvme0-disk,size=1073741824,read-zeroes=on" in layout.arguments


def test_nvme_with_virtual_functions() -> None:
    arguments = plan(["nvme,vfs=4"], SCRATCH).arguments
    (nvme,) = options(arguments, "nvme")
    assert (nvme["subsys"], nvme["sriov_max_vfs"], nvme["msix_qsize"]) == ("nvme0-subsys", "4", "16")
    assert "drive" not in nvme
    assert options(arguments, "nvme-ns") == [{"drive": "nvme0-disk", "bus": "nvme0"}]


def test_a_comma_in_a_path_is_escaped() -> None:
    arguments = plan(["nvme"], Path("/a,b")).arguments
    assert any("file.filename=/a,,b/nvme0-disk.raw" in part for part in arguments)


def test_disk_size_is_checked() -> None:
    with pytest.raises(GuestSpecError, match="multiple of 512"):
        plan(["nvme,size=1000"], SCRATCH)


def test_ivshmem_has_its_memory() -> None:
    arguments = plan(["ivshmem,size=2M"], SCRATCH).arguments
    assert "memory-backend-ram,id=ivshmem0-memory,size=2097152,share=on" in arguments


def test_own_properties_win_over_defaults() -> None:
    (net,) = options(plan(["virtio-net,disable-legacy=off,aer=on"], SCRATCH).arguments, "virtio-net-pci")
    assert (net["disable-legacy"], net["aer"], net["iommu_platform"]) == ("off", "on", "on")


def test_an_unknown_kind_is_qemus() -> None:
    assert options(plan(["pci-testdev,membar=1M"], SCRATCH).arguments, "pci-testdev")[0]["membar"] == "1M"


def test_there_is_room_for_27_slots() -> None:
    assert len(plan(["edu"] * 27, SCRATCH).placed) == 27
    with pytest.raises(GuestSpecError, match="room for 27 slots, not 28"):
        plan(["edu"] * 28, SCRATCH)


@pytest.mark.parametrize("name", sorted(topology.TOPOLOGIES))
def test_named_topologies_can_be_built(name: str) -> None:
    assert plan(topology.TOPOLOGIES[name], SCRATCH).placed


def test_devices_of_other_buses_have_seats() -> None:
    arm64 = machines.named("arm64")
    layout = plan(["pl031", "virtio-rng-mmio", "virtio-rng-mmio,max-bytes=8", "edu"], SCRATCH, machine=arm64)
    assert [(each.name, each.bus, each.function) for each in layout.placed] == [
        ("pl0310", "amba", "9010000.pl031"),
        ("virtio-rng-mmio0", "platform", "a000000.virtio_mmio"),
        ("virtio-rng-mmio1", "platform", "a000200.virtio_mmio"),
        ("edu0", "pci", "00.0"),
    ]
    assert [each["bus"] for each in options(layout.arguments, "virtio-rng-device")] == [
        "virtio-mmio-bus.0",
        "virtio-mmio-bus.1",
    ]


def test_a_ccw_device_has_a_number_and_a_disk() -> None:
    layout = plan(["virtio-blk-ccw,size=1M"], SCRATCH, machine=machines.named("s390x"))
    assert layout.placed == (Placed("virtio-blk-ccw0", "virtio-blk-ccw", "-", "0.0.0100", "ccw"),)
    (disk,) = options(layout.arguments, "virtio-blk-ccw")
    assert disk["devno"] == "fe.0.0100"
    assert layout.files[0][1] == 1 << 20


def test_a_function_of_s390x_has_a_domain_of_its_own() -> None:
    layout = plan(["nvme", "virtio-rng"], SCRATCH, machine=machines.named("s390x"))
    assert [each.function for each in layout.placed] == ["0001:00:00.0", "0002:00:00.0"]
    assert [each["target"] for each in options(layout.arguments, "zpci")] == ["nvme0", "virtio-rng0"]
    assert "addr" not in options(layout.arguments, "nvme")[0]


@pytest.mark.parametrize(
    ("slots", "arch", "reason"),
    [
        (["pl031", "pl031"], "arm64", "has one pl031"),
        (["flash,size=1M"], "arm64", "takes no properties"),
        (["pl031+edu"], "arm64", "no slot with several functions"),
        (["nvme+nvme"], "s390x", "no slot with several functions"),
    ],
)
def test_what_a_machine_has_no_seat_for(slots: list[str], arch: str, reason: str) -> None:
    with pytest.raises(GuestSpecError, match=reason):
        plan(slots, SCRATCH, machine=machines.named(arch))
