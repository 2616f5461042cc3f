"""What is said of functions: as values, as JSON, in tables and drawings; filters; opened devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vfio_user
from tests.unit.binding.fake_bus import FakeBus
from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from vfio_user.cli import main
from vfio_user.errors import ArgumentError
from vfio_user.inventory import Filter, FunctionFacts, describe, facts
from vfio_user.kernel import sysfs, topology
from vfio_user.pci.names import PciNames, parse_names

DEVICE, NIC, SOUND, PORT = "0000:01:00.0", "0000:02:00.0", "0000:02:00.1", "0000:00:1c.0"
NAMES = parse_names(
    "8086  Intel Corporation\n\t1533  I210 [Gigabit] Network Connection\nC 02  Network controller\n"
    "\t00  Ethernet controller\nC 06  Bridge\n\t04  PCI bridge\n"
)
#: The names that programs rely on. A name may be added, none may go away.
FIELDS = {
    "address", "vendor", "device", "subsystem_vendor", "subsystem_device", "revision", "class", "vendor_name",
    "device_name", "class_name", "driver", "group", "viable", "iommu", "numa_node", "node", "nodes", "reset_methods",
    "reset_domain", "bridge", "parent", "physical_function", "virtual_functions", "bars", "blockers",
}  # fmt: skip


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBus:
    """Two ports: an edu in a group of its own, and an Ethernet with sound in one group."""
    bus = FakeBus(tmp_path, monkeypatch)
    monkeypatch.setattr(facts, "load_names", lambda: NAMES)
    monkeypatch.setenv("COLUMNS", "140")
    bus.driver("vfio-pci", "edu", "igb", "snd")
    for port, group, devices in ((PORT, 3, (DEVICE,)), ("0000:00:1c.1", 4, (NIC, SOUND))):
        folder = bus.add_function(port, "pcieport", group=group, ids=(0x8086, 1, 0x060400))
        for device in devices:
            put_below(bus, folder, device)
    vfio_user.bind(DEVICE)
    return bus


def put_below(bus: FakeBus, port: Path, address: str) -> None:
    ids, driver, group = {
        DEVICE: ((0x1234, 0x11E8, 0x00FF00), "edu", 7),
        NIC: ((0x8086, 0x1533, 0x020000), "igb", 9),
        SOUND: ((0x1234, 0x0001, 0x040300), "snd", 9),
    }[address]
    flat = bus.add_function(address, driver, group=group, ids=ids)
    flat.rename(port / address)
    flat.symlink_to(port / address)


def only(address: str) -> FunctionFacts:
    return describe(sysfs.pci_function(address), NAMES)


def test_what_is_said(bus: FakeBus) -> None:
    path = bus.root / "bus/pci/devices" / NIC
    for name, text in (
        ("subsystem_vendor", "0x8086"),
        ("subsystem_device", "0x0001"),
        ("revision", "0x03"),
        ("numa_node", "1"),
        ("reset_method", "flr bus"),
        ("sriov_numvfs", "2"),
        ("resource", "0x10 0x10 0x0\n0xe0000000 0xe0003fff 0x140204\n0xf000 0xf03f 0x40101\n0x0 0x0 0x0\n"),
    ):
        (path / name).write_text(f"{text}\n")
    (path / "iommu").symlink_to(bus.root / "class/iommu/dmar0")
    nic = only(NIC)
    assert (nic.name, nic.class_name) == ("Intel Corporation I210 [Gigabit] Network Connection", "Ethernet controller")
    assert (nic.subsystem_vendor, nic.subsystem_device, nic.revision) == (0x8086, 1, 3)
    assert (nic.driver, nic.group, nic.iommu, nic.numa_node, nic.viable) == ("igb", 9, "dmar0", 1, False)
    assert nic.reset_methods == ("flr", "bus")
    assert nic.reset_domain == (NIC, SOUND)
    assert (nic.parent, nic.bridge, nic.physical_function, nic.virtual_functions) == ("0000:00:1c.1", False, None, 2)
    assert nic.bars == (
        facts.Bar(1, 0xE0000000, 0x4000, "memory, 64 bits"),
        facts.Bar(2, 0xF000, 0x40, "I/O"),
    )
    assert nic.blockers == ("2 virtual functions of it are switched on, and would vanish",)
    assert (nic.node, nic.nodes) == (None, ())


def test_a_bound_one(bus: FakeBus) -> None:
    edu = only(DEVICE)
    assert (edu.viable, edu.node) == (True, f"{bus.dev}/vfio/7")
    assert len(edu.nodes) == 2
    assert (edu.name, edu.blockers) == ("class 00ff00", ())
    vfio_user.bind(NIC)
    assert only(NIC).blockers == (f"{SOUND} (snd) is in its group",)


def test_bridges_and_what_hangs_together(bus: FakeBus) -> None:
    port = only(PORT)
    assert (port.bridge, port.parent, port.blockers, port.reset_domain) == (True, None, (), (PORT,))
    assert [str(each.address) for each in topology.below(sysfs.pci_function(PORT))] == [DEVICE]
    assert [str(each.address) for each in topology.root_functions()] == [PORT, "0000:00:1c.1"]
    virtual = bus.add_function("0000:02:10.0", group=12)
    (virtual / "physfn").symlink_to(bus.root / "bus/pci/devices" / NIC)
    (bus.root / "bus/pci/devices" / NIC / "virtfn0").symlink_to(virtual)
    nic = sysfs.pci_function(NIC)
    assert [str(each.address) for each in topology.virtual_functions(nic)] == ["0000:02:10.0"]
    one = sysfs.pci_function("02:10.0")
    assert topology.physical_function(one) == nic
    assert topology.reset_domain(one) == (one,)
    assert only("02:10.0").physical_function == NIC


def test_no_iommu_and_no_names(bus: FakeBus) -> None:
    (bus.root / "bus/pci/devices" / NIC / "iommu_group").unlink()
    nic = describe(sysfs.pci_function(NIC), PciNames())
    assert (nic.group, nic.viable, nic.name) == (None, False, "class 020000")
    assert nic.blockers == ("no IOMMU translates for it",)


def test_json_keeps_its_names(bus: FakeBus) -> None:
    for each in vfio_user.survey():
        assert set(each.to_json()) == FIELDS
        json.dumps(each.to_json())


# -- filters


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, [PORT, "0000:00:1c.1", DEVICE, NIC, SOUND]),
        ({"addresses": ("02:00.0",)}, [NIC]),
        ({"addresses": ("02:00", DEVICE)}, [DEVICE, NIC, SOUND]),
        ({"ids": "8086:1533"}, [NIC]),
        ({"ids": "1234:"}, [DEVICE, SOUND]),
        ({"ids": ":11E8"}, [DEVICE]),
        ({"kind": "0604"}, [PORT, "0000:00:1c.1"]),
        ({"kind": "02"}, [NIC]),
        ({"kind": "Ethernet"}, [NIC]),
        ({"kind": "0x020000"}, [NIC]),
        ({"driver": "igb"}, [NIC]),
        ({"driver": "none"}, []),
        ({"group": 9}, [NIC, SOUND]),
        ({"vfio": True}, [DEVICE]),
        ({"group": 9, "ids": "8086:"}, [NIC]),
    ],
)
def test_filters(bus: FakeBus, arguments: dict[str, object], found: list[str]) -> None:
    chosen = Filter(**arguments).apply(vfio_user.survey())  # type: ignore[arg-type]  # one field at a time
    assert [each.address for each in chosen] == found


def test_bad_filters() -> None:
    with pytest.raises(ArgumentError, match="are no ids; write vendor:device"):
        Filter(ids="intel")
    with pytest.raises(ArgumentError, match="is not a PCI address"):
        Filter(addresses=("eth0",))


# -- commands


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_list(bus: FakeBus, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == ["device", DEVICE, NIC, SOUND, "2"]
    assert "I210 [Gigabit] Network Connection" in lines[2]
    assert PORT in run(capsys, "list", "--bridges")
    assert "No PCI function is like that" in run(capsys, "list", "--driver", "none")
    rows = json.loads(run(capsys, "list", "--json"))
    assert [row["address"] for row in rows] == [each.address for each in vfio_user.survey()]
    assert main(["list", "--id", "x"]) == 2


@pytest.mark.parametrize("width", [20, 40, 60, 84, 90, 110, 140, 300])
def test_list_in_any_width(
    bus: FakeBus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    vfio_user.bind(NIC)
    text = run(capsys, "list")
    assert all(len(line) <= width for line in text.splitlines())
    if width >= 60:
        assert DEVICE in text
        assert "vfio-pci" in text
        assert f"{SOUND} (snd)" in " ".join(text.split()) or width > 80


def test_no_names_is_said(bus: FakeBus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.cli.console.load_names", PciNames)
    assert "install the package pci.ids" in run(capsys, "list")


def test_tree(bus: FakeBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "tree").splitlines() == [
        "bus 0000:00",
        "├── 00:1c.0 Intel Corporation PCI bridge  pcieport  group 3  hot reset below: 1 function",
        "│   └── 01:00.0 class 00ff00  vfio-pci  group 7",
        "└── 00:1c.1 Intel Corporation PCI bridge  pcieport  group 4  hot reset below: 2 functions, "
        "blocked by 02:00.0, 02:00.1",
        "    ├── 02:00.0 Intel Corporation I210 [Gigabit] Network Connection  igb  group 9",
        "    └── 02:00.1 class 040300  snd  group 9",
    ]
    (one, two) = json.loads(run(capsys, "tree", "--json"))
    assert [each["address"] for each in two["below"]] == [NIC, SOUND]
    assert one["below"][0]["reset_domain"] == [DEVICE]


def test_tree_of_groups(bus: FakeBus, capsys: pytest.CaptureFixture[str]) -> None:
    vfio_user.bind(NIC)
    text = run(capsys, "tree", "--groups")
    assert "group 9  not viable" in text
    assert "snd  in the way" in text
    rows = json.loads(run(capsys, "tree", "--groups", "--json"))
    assert rows[-1] == {"group": 9, "viable": False, "iommu": None, "members": [NIC, SOUND]}
    (bus.root / "bus/pci/devices" / DEVICE / "iommu_group").unlink()
    assert run(capsys, "tree", "--groups").splitlines()[-2:] == [
        "no group: no IOMMU translates",
        "└── 01:00.0 class 00ff00  vfio-pci",
    ]


def test_info(bus: FakeBus, capsys: pytest.CaptureFixture[str]) -> None:
    path = bus.root / "bus/pci/devices" / NIC
    (path / "power_state").write_text("D0\n")
    (path / "resource").write_text("0xe0000000 0xe0003fff 0x140204\n")
    (path / "config").write_bytes(bytes(64))
    (path / "numa_node").write_text("0\n")
    bus.put("kernel/iommu_groups/9/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n")
    text = run(capsys, "info", "02:00.0")
    for words in (
        "ids         8086:1533",
        "class       020000 Ethernet controller",
        "group       9 (not viable)",
        "NUMA node   0",
        "power       D0",
        "hot reset   takes with it: 0000:02:00.1",
        "reserved    0xfee00000..0xfeefffff msi",
        "0    16 KiB  memory, 64 bits  0xe0000000",
        "hidden: capabilities: the kernel shows them to root only",
        "need opening, which may reset the device (--open)",
    ):
        assert " ".join(words.split()) in " ".join(text.split())
    told = json.loads(run(capsys, "info", "02:00.0", "--json"))
    assert set(told) == FIELDS | {
        "capabilities", "reserved", "power", "mode", "regions", "irqs", "features", "iova_ranges", "page_sizes",
        "hidden",
    }  # fmt: skip
    assert "none: nothing above it could reset it" in run(capsys, "info", PORT)
    assert main(["info", "55:00.0"]) == 2


def test_info_of_a_broken_configuration(bus: FakeBus, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(256)
    data[6], data[0x34] = 0x10, 0x01
    (bus.root / "bus/pci/devices" / NIC / "config").write_bytes(bytes(data))
    assert "hidden: capabilities" not in run(capsys, "info", NIC)  # 1 & ~3 is an empty list
    data[0x34], data[0x40], data[0x41] = 0x40, 0x05, 0x40
    (bus.root / "bus/pci/devices" / NIC / "config").write_bytes(bytes(data))
    assert "hidden: capabilities: the capability list goes to 0x40" in run(capsys, "info", NIC)


def test_info_of_an_opened_device(
    bus: FakeBus, kernel: FakeKernel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = kernel.devices[DEVICE] = FakeDevice(bars={0: 0x4000})
    device.irqs[2] = (65, 1)
    text = run(capsys, "info", DEVICE, "--open")
    device.close()
    for words in ("opened      as type1v2", "BAR 0", "MSI-X", "65", "0x0..0xfedfffff", "page sizes  4 KiB"):
        assert " ".join(words.split()) in " ".join(text.split())
    assert "hidden" not in text
    kernel.failing["/dev/vfio/7"] = 13
    assert "hidden: regions, interrupts, features, IOVAs: open /dev/vfio/7" in run(capsys, "info", DEVICE, "--open")
