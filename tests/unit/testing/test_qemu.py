"""QEMU's command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vfio_user.testing import machines, qemu
from vfio_user.testing.errors import GuestSetupError
from vfio_user.testing.topology import Plan

ALL = [(arch, iommu) for arch, machine in machines.MACHINES.items() for iommu in machine.iommus]


def line(
    iommu: str = "intel", accel: str = "tcg", append: str = "", output: str = "/out", arch: str = "x86_64"
) -> list[str]:
    return qemu.command_line(
        machine=machines.named(arch),
        qemu="/usr/bin/qemu",
        kernel=Path("/vmlinuz"),
        initramfs=Path("/initramfs"),
        plan=Plan(("-device", "edu"), (), ()),
        iommu=iommu,
        memory=1 << 30,
        cpus=3,
        accel=accel,
        append=append,
        shares=[qemu.Share("host", Path("/")), qemu.Share("output", Path(output), writable=True)],
        scratch=Path("/scratch"),
    )


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_sizes_and_names() -> None:
    words = line(append="x=1")
    assert (value(words, "-m"), value(words, "-smp")) == ("1024M", "3")
    assert (value(words, "-kernel"), value(words, "-initrd")) == ("/vmlinuz", "/initramfs")
    assert value(words, "-append").endswith(" intel_iommu=on x=1")


def test_a_panic_ends_qemu() -> None:
    words = line()
    assert "-no-reboot" in words
    assert {"panic=-1", "oops=panic"} <= set(value(words, "-append").split())


def test_the_host_is_shared_read_only() -> None:
    (host,) = [word for word in line() if word.startswith("local,id=host")]
    assert "readonly=on" in host.split(",")


@pytest.mark.parametrize(("arch", "iommu"), ALL)
def test_the_iommu_comes_before_its_devices(arch: str, iommu: str) -> None:
    words = line(iommu, arch=arch)
    chosen = machines.named(arch).iommus[iommu]
    assert not chosen.device or words.index(chosen.device) < words.index("edu")
    assert chosen.machine in value(words, "-machine")
    assert chosen.kernel in value(words, "-append")


@pytest.mark.parametrize("arch", machines.MACHINES)
def test_every_machine_has_a_console_and_its_shares(arch: str) -> None:
    words = line(next(iter(machines.named(arch).iommus)), arch=arch)
    assert any("/scratch/console" in word for word in words)
    places = [word for word in words if "mount_tag=" in word]
    assert len(places) == len(set(places)) == 2
    assert not any("{" in word for word in words)


def test_interrupts_without_remapping_are_allowed_only_where_there_is_none() -> None:
    assert "allow_unsafe_interrupts" in value(line("virtio"), "-append")
    assert "allow_unsafe_interrupts" not in value(line("intel"), "-append")


def test_kvm_takes_the_hosts_processor() -> None:
    assert (value(line(accel="kvm"), "-cpu"), value(line(), "-cpu")) == ("host", "max")


def test_a_comma_in_a_path_is_escaped() -> None:
    assert any("path=/a,,b," in word for word in line(output="/a,b"))


def test_a_missing_qemu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for arch, package in (("x86_64", "qemu-system-x86"), ("arm64", "qemu-system-arm"), ("s390x", "qemu-system-s390x")):
        with pytest.raises(GuestSetupError, match=f"install the packages: {package}"):
            qemu.find(machines.named(arch))
