"""Who uses a device: disks, interfaces, displays, consoles, virtual functions, open nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.binding.conftest import DEVICE
from tests.unit.binding.fake_bus import FakeBus
from vfio_user.binding import Use, UseKind, disks, openers, uses
from vfio_user.errors import InUseError
from vfio_user.kernel import sysfs


def found(address: str = DEVICE) -> list[tuple[UseKind, str]]:
    return [(use.kind, use.what) for use in uses(sysfs.pci_function(address))]


def block(bus: FakeBus, name: str, number: str, place: str | None = None, *parts: tuple[str, str]) -> Path:
    """Add a disk below a device, or anywhere."""
    folder = bus.root / (place or f"bus/pci/devices/{DEVICE}/nvme/nvme0") / name
    bus.put("dev", f"{number}\n", folder)
    classes = bus.root / "class/block"
    classes.mkdir(parents=True, exist_ok=True)
    (classes / name).symlink_to(folder)
    for part, its_number in parts:
        bus.put(f"{part}/dev", f"{its_number}\n", folder)
        bus.put(f"{part}/partition", "1\n", folder)
        (classes / part).symlink_to(folder / part)
    return folder


def mounted(bus: FakeBus, *rows: str) -> None:
    bus.put("1/mountinfo", "".join(f"{row}\n" for row in rows), bus.proc)


def test_an_idle_device(bus: FakeBus) -> None:
    block(bus, "nvme0n1", "259:0", None, ("nvme0n1p1", "259:1"))
    assert found() == []


def test_a_mounted_disk(bus: FakeBus) -> None:
    block(bus, "nvme0n1", "259:0", None, ("nvme0n1p1", "259:1"))
    mounted(
        bus, r"30 1 259:1 / /mnt/my\040disk rw shared:1 - ext4 /dev/nvme0n1p1 rw", "31 1 0:5 / /dev rw - devtmpfs x rw"
    )
    assert found() == [(UseKind.DISK, "nvme0n1p1 is mounted at /mnt/my disk")]


def test_a_disk_mounted_twice_and_under_a_number_of_its_own(bus: FakeBus) -> None:
    block(bus, "sda", "8:0", f"bus/pci/devices/{DEVICE}/ata1/host0/target0:0:0/block")
    mounted(bus, "30 1 0:44 / / rw - btrfs /dev/sda rw", "31 1 0:44 /home /home rw - btrfs /dev/sda rw", "broken line")
    assert [what for _, what in found()] == ["sda is mounted at /", "sda is mounted at /home"]


def test_swap_and_what_is_stacked(bus: FakeBus) -> None:
    folder = block(bus, "nvme0n1", "259:0", None, ("nvme0n1p1", "259:1"), ("nvme0n1p2", "259:2"))
    block(bus, "dm-0", "254:0", "devices/virtual/block")
    block(bus, "md0", "9:0", "devices/virtual/block")
    (folder / "nvme0n1p1/holders/dm-0").mkdir(parents=True)
    (folder / "nvme0n1p2/holders/md0").mkdir(parents=True)
    bus.put("swaps", "Filename Type Size Used Priority\n/dev/dm-0 partition 1 0 -2\n", bus.proc)
    assert [what for _, what in found()] == ["dm-0 is swap space", "nvme0n1p2 is part of md0"]


def test_stacks_that_go_round_in_a_circle(bus: FakeBus) -> None:
    folder = block(bus, "nvme0n1", "259:0")
    (folder / "holders/nvme0n1").mkdir(parents=True)
    assert [what for _, what in found()] == ["nvme0n1 is part of nvme0n1"]


def test_multipath_disks_are_beside_their_controllers(bus: FakeBus) -> None:
    head = block(bus, "nvme0n1", "259:0", "devices/virtual/nvme-subsystem/nvme-subsys0")
    controller = bus.root / f"bus/pci/devices/{DEVICE}/nvme/nvme0"
    controller.mkdir(parents=True)
    (head.parent / "nvme0").symlink_to(controller)
    bus.put("hidden", "1\n", block(bus, "nvme0c0n1", "0:0"))
    classes = bus.root / "class/nvme-subsystem"
    classes.mkdir(parents=True)
    (classes / "nvme-subsys0").symlink_to(head.parent)
    mounted(bus, "30 1 259:0 / /data rw - xfs /dev/nvme0n1 rw")
    assert disks.disks_below(sysfs.pci_function(DEVICE)) == ("nvme0n1",)
    assert found() == [(UseKind.DISK, "nvme0n1 is mounted at /data")]


def test_a_disk_that_the_kernel_claims(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    block(bus, "nvme0n1", "259:0")
    asked: list[int] = []

    def claimed(path: Path, flags: int) -> int:
        asked.append(flags)
        raise OSError(16, "busy")

    monkeypatch.setattr(os, "open", claimed)
    assert [what for _, what in found()] == ["nvme0n1 is claimed in the kernel (a file system, RAID, ZFS or the like)"]
    assert asked[0] & os.O_EXCL
    assert not asked[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)


def interface(bus: FakeBus, name: str, flags: str) -> None:
    folder = bus.put(f"virtio0/net/{name}/flags", flags, bus.root / "bus/pci/devices" / DEVICE).parent
    (bus.root / "class/net").mkdir(parents=True, exist_ok=True)
    (bus.root / "class/net" / name).symlink_to(folder)


def test_interfaces(bus: FakeBus) -> None:
    interface(bus, "eth0", "0x1003\n")
    interface(bus, "eth1", "0x1002\n")
    bus.put("class/net/lo/flags", "0x9\n")
    assert found() == [(UseKind.INTERFACE, "eth0 is up")]


def test_default_routes(bus: FakeBus) -> None:
    interface(bus, "eth0", "0x1003\n")
    interface(bus, "eth1", "0x1003\n")
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    bus.put("net/route", head + "eth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\nshort line\n", bus.proc)
    zero = "0" * 32
    rows = [f"{zero} 00 {zero} 00 fe80 400 1 0 3 eth1", f"{zero} 00 {zero} 00 {zero} ffffffff 1 0 200200 lo"]
    bus.put("net/ipv6_route", "\n".join(rows), bus.proc)
    assert [what for _, what in found()] == ["eth0 carries the default route", "eth1 carries the default route"]


def test_display_console_and_bridge(bus: FakeBus) -> None:
    bus.put(f"bus/pci/devices/{DEVICE}/boot_vga", "1\n")
    bus.put("class/tty/console/active", "tty0 ttyS4\n")
    folder = bus.root / f"bus/pci/devices/{DEVICE}/tty/ttyS4"
    folder.mkdir(parents=True)
    (bus.root / "class/tty/ttyS4").symlink_to(folder)
    assert [kind for kind, _ in found()] == [UseKind.CONSOLE, UseKind.DISPLAY]
    assert [kind for kind, _ in found("0000:00:1c.0")] == [UseKind.BRIDGE]


def test_open_nodes(bus: FakeBus) -> None:
    from vfio_user import bind, restore, unbind

    bind(DEVICE)
    for pid, name, target in ((4, "spdk", "vfio/7"), (5, "other", "null"), (os.getpid(), "python", "vfio/7")):
        bus.put(f"{pid}/comm", f"{name}\n", bus.proc)
        (bus.proc / f"{pid}/fd").mkdir()
        (bus.proc / f"{pid}/fd/3").symlink_to(bus.dev / target)
    assert openers(sysfs.pci_function(DEVICE)) == tuple(sorted([(4, "spdk"), (os.getpid(), "this one")]))
    for refused in (restore, lambda: unbind(DEVICE)):
        with pytest.raises(Exception, match=r"process 4 \(spdk\) has it open through VFIO.*--force-in-use open"):
            refused()
    restore(force_in_use=["open"])
    assert openers(sysfs.pci_function(DEVICE)) == ()


def test_what_is_told_and_how_it_is_overridden(bus: FakeBus) -> None:
    from vfio_user import bind

    interface(bus, "eth0", "0x1003\n")
    bus.put(f"bus/pci/devices/{DEVICE}/boot_vga", "1\n")
    before = bus.shape()
    with pytest.raises(InUseError) as caught:
        bind(DEVICE, force_in_use=["disk"])
    assert str(caught.value) == (
        f"{DEVICE} (driver edu) is in use: eth0 is up; it is the display that the machine booted with. "
        "End that first, or insist: --force-in-use interface --force-in-use display"
    )
    assert caught.value.uses == (("interface", "eth0 is up"), ("display", uses(sysfs.pci_function(DEVICE))[1].what))
    with pytest.raises(InUseError, match="display"):
        bind(DEVICE, force_in_use="interface")
    assert bus.shape() == before
    assert not bus.log
    bind(DEVICE, force_in_use=[UseKind.INTERFACE, "display"])


def test_a_use_is_a_value() -> None:
    assert Use(UseKind.DISK, "x") == Use(UseKind.DISK, "x")
