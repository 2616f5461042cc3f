"""The doctor on machines that have one thing wrong each."""

from __future__ import annotations

import json
import os
import platform
import resource
from pathlib import Path

import pytest

import vfio_user
from tests.unit.binding.fake_bus import FakeBus
from vfio_user.binding import files
from vfio_user.cli import main
from vfio_user.errors import ArgumentError
from vfio_user.findings import Finding, Severity
from vfio_user.kernel import sysfs

DEVICE, NEIGHBOUR, PORT = "0000:01:00.0", "0000:01:00.1", "0000:00:1c.0"


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBus:
    """A machine with nothing wrong: an edu behind a root port, bound to vfio-pci, alone in group 7."""
    bus = FakeBus(tmp_path, monkeypatch)
    monkeypatch.setattr(files, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    bus.driver("vfio-pci", "edu", "snd")
    port = bus.add_function(PORT, "pcieport", group=3, ids=(0x8086, 1, 0x060400))
    put_below(bus, port, DEVICE, "edu", group=7)
    vfio_user.bind(DEVICE)
    (bus.journal / f"{DEVICE}.json").unlink()
    bus.put("class/iommu/dmar0/x", "")
    bus.put("reset_method", "flr bus\n", bus.root / "bus/pci/devices" / DEVICE)
    bus.put("kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "8\n")
    bus.put("module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n")
    bus.put("interrupts", "  9:  0  IR-IO-APIC  9-fasteoi acpi\n", bus.proc)
    for name in ("vfio/vfio", "iommu"):
        bus.put(name, "", bus.dev)
    return bus


def put_below(bus: FakeBus, port: Path, address: str, driver: str | None, group: int) -> None:
    """Add a function that hangs on a port, as sysfs shows it: a link to a folder inside of the port's."""
    flat = bus.add_function(address, driver, group=group)
    os.rename(flat, port / address)
    flat.symlink_to(port / address)


def keys(*addresses: str, least: Severity = Severity.NOTE) -> list[str]:
    return [each.key for each in vfio_user.explain(*addresses) if each.severity >= least]


def found(key: str, *addresses: str) -> Finding:
    (finding,) = [each for each in vfio_user.explain(*addresses) if each.key == key]
    return finding


def test_nothing_wrong(bus: FakeBus) -> None:
    diagnosis = vfio_user.explain(DEVICE)
    assert keys(DEVICE) == []
    assert (diagnosis.severity, diagnosis.ready, diagnosis.errors, str(diagnosis)) == (Severity.OK, True, (), "")
    assert [each.key for each in diagnosis] == [
        "vfio-pci",
        "iommu",
        "interrupts-remapped",
        "memlock",
        "dma-entry-limit",
        "huge-pages",
        "bound",
        "group",
        "nodes",
        "reset",
    ]


def test_bad_addresses(bus: FakeBus) -> None:
    with pytest.raises(ArgumentError, match="is not a PCI address"):
        vfio_user.explain("x")
    with pytest.raises(ArgumentError, match="there is no PCI function"):
        vfio_user.explain("55:00.0")


# -- the machine


def test_vfio_pci_is_not_loaded(bus: FakeBus) -> None:
    (bus.root / "bus/pci/drivers/vfio-pci").rmdir()
    assert keys() == ["no-vfio-pci"]
    bus.put(f"modules/{os.uname().release}/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: x\n", bus.dev.parent)
    assert keys() == ["vfio-pci-not-loaded"]
    assert found("vfio-pci-not-loaded").command == "modprobe vfio-pci"


def test_nodes_of_the_machine(bus: FakeBus) -> None:
    (bus.dev / "iommu").unlink()
    assert keys() == ["no-iommufd"]
    (bus.dev / "vfio/vfio").unlink()
    assert keys() == ["no-vfio", "no-iommufd"]
    bus.put("iommu", "", bus.dev)
    assert keys() == []


def test_nodes_that_are_not_ours(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert keys(DEVICE) == ["node-not-ours"] * 3
    *shared, last = (each for each in vfio_user.explain(DEVICE) if each.key == "node-not-ours")
    assert shared[0].command == f"chmod 0666 {bus.dev}/vfio/vfio"
    assert last.command == f"vfio-user bind {DEVICE} --user $USER"
    assert f"chown $USER {bus.dev}/vfio/7" in last.remedy


def without_iommu(bus: FakeBus) -> Finding:
    for link in (bus.root / "bus/pci/devices").glob("*/iommu_group"):
        link.unlink()
    for folder in (bus.root / "kernel/iommu_groups").iterdir():
        folder.rename(bus.root / f"old-{folder.name}")
    return found("no-iommu")


@pytest.mark.parametrize(
    ("table", "line", "cpu", "words"),
    [
        ("DMAR", "quiet intel_iommu=off", "", "take intel_iommu=off off the kernel command line"),
        ("DMAR", "quiet", "hypervisor", "does not use it: boot with intel_iommu=on"),
        ("IVRS", "", "", "boot with amd_iommu=on"),
        ("", "", "flags: fpu hypervisor", "a virtual machine whose hypervisor emulates none"),
        ("", "", "flags: fpu", "Turn it on in the firmware"),
    ],
)
def test_no_iommu(bus: FakeBus, table: str, line: str, cpu: str, words: str) -> None:
    if table:
        bus.put(f"firmware/acpi/tables/{table}", "")
    bus.put("cmdline", line, bus.proc)
    bus.put("cpuinfo", cpu, bus.proc)
    finding = without_iommu(bus)
    assert finding.severity is Severity.ERROR
    assert words in finding.remedy


def test_device_without_iommu(bus: FakeBus) -> None:
    (bus.root / "bus/pci/devices" / DEVICE / "iommu_group").unlink()
    assert "no-group" in keys(DEVICE, least=Severity.ERROR)
    without_iommu(bus)
    assert found("no-iommu", DEVICE).device is None
    assert "no-group" not in keys(DEVICE)


def test_interrupts_that_are_not_remapped(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.put("interrupts", "  9:  0  IO-APIC  9-fasteoi acpi\n", bus.proc)
    assert found("interrupts-not-remapped").severity is Severity.ERROR
    bus.put("module/iommufd/parameters/allow_unsafe_interrupts", "Y\n")
    assert found("interrupts-not-remapped").severity is Severity.WARNING
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert keys() == []


def test_unsafe_noiommu(bus: FakeBus) -> None:
    bus.put("module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    assert keys() == ["unsafe-noiommu"]


# -- limits


@pytest.mark.parametrize(
    ("soft", "hard", "capabilities", "severity", "command"),
    [
        (65536, 65536, "0", Severity.WARNING, ""),
        (65536, 1 << 30, "0", Severity.WARNING, "ulimit -l 1048576"),
        (65536, resource.RLIM_INFINITY, "0", Severity.WARNING, "ulimit -l unlimited"),
        (65536, 65536, "4000", Severity.OK, ""),
        (1 << 30, 1 << 30, "0", Severity.OK, ""),
    ],
)
def test_memlock(
    bus: FakeBus,
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    capabilities: str,
    severity: Severity,
    command: str,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    bus.put("self/status", f"Name:\tx\nCapEff:\t{capabilities}\n", bus.proc)
    finding = found("memlock")
    assert (finding.severity, finding.command) == (severity, command)
    if severity:
        assert "counts against RLIMIT_MEMLOCK (64 KiB)" in str(finding)


def test_few_mappings_and_no_huge_pages(bus: FakeBus) -> None:
    bus.put("module/vfio_iommu_type1/parameters/dma_entry_limit", "4\n")
    bus.put("kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n")
    assert keys() == ["dma-entry-limit", "huge-pages"]
    assert found("dma-entry-limit").severity is Severity.WARNING


def test_surroundings(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.put("kernel/security/lockdown", "none [integrity] confidentiality\n")
    bus.put("self/status", "Seccomp:\t2\nSeccomp_filters:\t1\n", bus.proc)

    class Status:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda path: Status)
    assert keys() == ["lockdown", "sysfs-read-only", "seccomp"]


# -- the device


def test_a_bridge(bus: FakeBus) -> None:
    assert keys(PORT) == ["bridge"]


def test_not_bound_and_in_use(bus: FakeBus) -> None:
    vfio_user.unbind(DEVICE)
    bus.bind(DEVICE, "edu")
    bus.put("boot_vga", "1\n", bus.root / "bus/pci/devices" / DEVICE)
    assert keys(DEVICE, least=Severity.WARNING) == ["not-bound", "in-use"]
    assert found("not-bound", DEVICE).command == f"vfio-user bind {DEVICE}"
    assert found("in-use", DEVICE).command == f"vfio-user bind {DEVICE} --force-in-use display"


def test_a_group_that_is_not_viable(bus: FakeBus) -> None:
    put_below(bus, bus.root / "bus/pci/devices" / PORT, NEIGHBOUR, "snd", group=7)
    finding = found("not-viable", DEVICE)
    assert finding.what == f"group 7 is not viable: {NEIGHBOUR} (driver snd) is in it and not bound to vfio-pci"
    assert finding.command == f"vfio-user bind {NEIGHBOUR}"
    blocked = found("reset-blocked", DEVICE)
    assert blocked.command == f"vfio-user bind {NEIGHBOUR}"
    vfio_user.bind(NEIGHBOUR)
    assert keys(DEVICE) == []


def test_a_bridge_beside_it_blocks_a_hot_reset_only(bus: FakeBus) -> None:
    put_below(bus, bus.root / "bus/pci/devices" / PORT, NEIGHBOUR, "pcieport", group=7)
    bus.put("class", "0x060400\n", bus.root / "bus/pci/devices" / NEIGHBOUR)
    assert keys(DEVICE) == ["reset-blocked"]
    finding = found("reset-blocked", DEVICE)
    assert finding.severity is Severity.NOTE
    assert finding.why.startswith("It is harmless for the group")
    assert finding.command == ""


def test_a_device_that_does_not_answer(bus: FakeBus) -> None:
    (bus.root / "bus/pci/devices" / DEVICE / "config").write_bytes(b"\xff" * 64)
    assert keys(DEVICE) == ["no-answer"]


def test_a_device_that_the_firmware_uses(bus: FakeBus) -> None:
    bus.put("kernel/iommu_groups/7/reserved_regions", "0x0 0xfff direct\n0xfee00000 0xfeefffff msi\n")
    assert keys(DEVICE) == ["firmware-owns"]
    bus.put("kernel/iommu_groups/7/reserved_regions", "0x0 0xfff direct-relaxable\n")
    assert keys(DEVICE) == []


def test_a_missing_node(bus: FakeBus) -> None:
    for path in (bus.dev / "vfio/7", *(bus.dev / "vfio/devices").iterdir()):
        path.unlink()
    assert keys(DEVICE) == ["node-missing", "node-missing"]
    assert found_all("node-missing", DEVICE)[0].command == f"--device {bus.dev}/vfio/7"


def found_all(key: str, *addresses: str) -> list[Finding]:
    return [each for each in vfio_user.explain(*addresses) if each.key == key]


def test_a_device_that_is_open(bus: FakeBus) -> None:
    bus.put("4/comm", "spdk\n", bus.proc)
    (bus.proc / "4/fd").mkdir()
    (bus.proc / "4/fd/3").symlink_to(bus.dev / "vfio/7")
    assert keys(DEVICE) == ["open-elsewhere"]
    assert "process 4 (spdk)" in found("open-elsewhere", DEVICE).what


def test_no_way_to_reset_it(bus: FakeBus) -> None:
    bus.put("reset_method", "\n", bus.root / "bus/pci/devices" / DEVICE)
    assert keys(DEVICE) == ["no-reset"]


def test_a_virtual_function_of_a_pf_in_user_space(bus: FakeBus) -> None:
    vfio_user.bind(DEVICE)
    virtual = bus.add_function("0000:01:01.0", group=8)
    vfio_user.bind("01:01.0")
    (virtual / "physfn").symlink_to(bus.root / "bus/pci/devices" / DEVICE)
    assert "token-needed" in keys("01:01.0")


def test_what_was_bound_by_this_tool(bus: FakeBus) -> None:
    vfio_user.unbind(DEVICE)
    assert found("recorded", DEVICE).command == f"vfio-user restore {DEVICE}"


# -- the command


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["doctor", *words])
    return code, capsys.readouterr().out


def test_exit_codes(bus: FakeBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, DEVICE)[0] == 0
    bus.put("kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n")
    code, text = run(capsys)
    assert code == 0
    assert "note     no huge pages are free" in text
    assert text.endswith("\nNothing is in the way.\n")
    bus.put("module/vfio_iommu_type1/parameters/dma_entry_limit", "4\n")
    code, text = run(capsys)
    assert code == 1
    assert text.endswith("\nNothing is in the way, but see above.\n")
    code, text = run(capsys, PORT)
    assert code == 3
    assert text.endswith("\n1 thing is in the way.\n")
    assert main(["doctor", "x"]) == 2
    assert "is not a PCI address" in capsys.readouterr().err


def test_what_people_read(bus: FakeBus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    vfio_user.unbind(DEVICE)
    (bus.journal / f"{DEVICE}.json").unlink()
    _, text = run(capsys, DEVICE, "--quiet")
    assert text == (
        f"error    {DEVICE} is not bound to vfio-pci (driver:\n"
        "         none)\n"
        "         -> Bind it\n"
        f"            $ vfio-user bind {DEVICE}\n"
        "\n"
        "1 thing is in the way.\n"
    )
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, text = run(capsys, DEVICE, "--quiet")
    assert text.startswith("\x1b[31;1merror    \x1b[0m0000:01:00.0 is not")


def test_json(bus: FakeBus, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, DEVICE, "--json")
    told = json.loads(text)
    assert code == 0
    assert (told["severity"], told["ready"]) == ("ok", True)
    assert told["findings"][0] == {
        "key": "vfio-pci",
        "severity": "ok",
        "device": None,
        "what": "the kernel has vfio-pci",
        "why": "",
        "remedy": "",
        "command": "",
    }


def test_errors_and_the_doctor_say_the_same(bus: FakeBus) -> None:
    from vfio_user.iommu import explain

    put_below(bus, bus.root / "bus/pci/devices" / PORT, NEIGHBOUR, "snd", group=7)
    assert str(found("not-viable", DEVICE)) == explain.not_viable(7, [(NEIGHBOUR, "snd")])
    vfio_user.unbind(DEVICE)
    assert str(found("not-bound", DEVICE)) == explain.no_such_device(DEVICE, 7)
    assert sysfs.group(7).culprits
