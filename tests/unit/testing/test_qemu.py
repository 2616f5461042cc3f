"""QEMU's command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vfio_user.testing import qemu
from vfio_user.testing.errors import GuestSetupError
from vfio_user.testing.topology import Plan


def line(iommu: str = "intel", accel: str = "tcg", append: str = "", output: str = "/out") -> list[str]:
    return qemu.command_line(
        qemu="/usr/bin/qemu",
        kernel=Path("/vmlinuz"),
        initramfs=Path("/initramfs"),
        plan=Plan(("-device", "edu"), (), ()),
        iommu=iommu,
        memory=1 << 30,
        cpus=3,
        accel=accel,
        append=append,
        output=Path(output),
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


@pytest.mark.parametrize("iommu", sorted(qemu.IOMMUS))
def test_the_iommu_comes_before_its_devices(iommu: str) -> None:
    words = line(iommu)
    device = qemu.IOMMUS[iommu].device
    assert not device or words.index(device) < words.index("edu")


def test_interrupts_without_remapping_are_allowed_only_where_there_is_none() -> None:
    assert "allow_unsafe_interrupts" in value(line("virtio"), "-append")
    assert "allow_unsafe_interrupts" not in value(line("intel"), "-append")


def test_kvm_takes_the_hosts_processor() -> None:
    assert (value(line(accel="kvm"), "-cpu"), value(line(), "-cpu")) == ("host", "max")


def test_a_comma_in_a_path_is_escaped() -> None:
    assert any("path=/a,,b," in word for word in line(output="/a,b"))


def test_a_missing_qemu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(GuestSetupError, match="install the package qemu-system-x86"):
        qemu.find()
