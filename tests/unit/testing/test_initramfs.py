"""The initramfs: modules that need each other, and an archive that another program reads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_user.testing import initramfs
from vfio_user.testing.errors import GuestSetupError
from vfio_user.testing.kernels import Kernel

ROWS = {
    "kernel/fs/9p/9p.ko.xz": ["kernel/net/9pnet.ko.xz"],
    "kernel/net/9pnet.ko.xz": ["kernel/fs/netfs.ko.xz"],
    "kernel/fs/netfs.ko.xz": [],
    "kernel/vfio-pci.ko": [],
    "kernel/other.ko": [],
}


def test_closure_follows_what_modules_need() -> None:
    assert initramfs.closure(ROWS, ["9p", "virtio_pci"]) == [
        "kernel/fs/9p/9p.ko.xz",
        "kernel/fs/netfs.ko.xz",
        "kernel/net/9pnet.ko.xz",
    ]


def test_closure_takes_either_spelling() -> None:
    assert initramfs.closure(ROWS, ["vfio_pci"]) == initramfs.closure(ROWS, ["vfio-pci"]) == ["kernel/vfio-pci.ko"]


def test_closure_survives_a_circle() -> None:
    assert initramfs.closure({"a.ko": ["b.ko"], "b.ko": ["a.ko"]}, ["a"]) == ["a.ko", "b.ko"]


def test_archive_is_read_by_cpio(tmp_path: Path) -> None:
    assert shutil.which("cpio"), "install the package cpio"
    data = initramfs.archive({"init": b"#!/bin/sh\n", "bin/busybox": b"x" * 5}, {"bin/sh": "busybox"})
    listing = subprocess.run(["cpio", "-tv"], input=data, capture_output=True, check=True).stdout.decode()
    rows = {row.split()[-1]: row.split()[0] for row in listing.splitlines()}
    assert rows["init"] == rows["bin/busybox"] == "-rwxr-xr-x"
    assert rows["bin"] == rows["proc"] == "drwxr-xr-x"
    assert rows["dev/console"].startswith("crw")
    assert "bin/sh -> busybox" in listing
    subprocess.run(["cpio", "-id", "--quiet", "bin/busybox", "bin/sh"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/sh").resolve().read_bytes() == b"x" * 5


def test_a_kernel_without_9p_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("kernel/vfio-pci.ko.xz:\n")
    (tmp_path / "modules.builtin").write_text("kernel/virtio_pci.ko\n")
    (tmp_path / "busybox").write_bytes(b"")
    kernel = Kernel(tmp_path / "vmlinuz", "6.99", tmp_path, "key")
    with pytest.raises(GuestSetupError, match=r"kernel 6\.99 lacks 9pnet_virtio, 9p, overlay, vfio_iommu_type1"):
        initramfs.build(kernel, tmp_path / "busybox")


def test_modules_are_packed_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"kernel/{name}.ko" for name in initramfs.MODULES]
    (tmp_path / "kernel").mkdir()
    for name in names[1:]:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "modules.dep").write_text("".join(f"{name}:\n" for name in names[1:]))
    (tmp_path / "modules.builtin").write_text(f"{names[0]}\n")
    (tmp_path / "busybox").write_bytes(b"busybox")
    kernel = Kernel(tmp_path / "vmlinuz", "6.99", tmp_path, "key")
    data = initramfs.build(kernel, tmp_path / "busybox").read_bytes()
    assert b"kernel/9p.ko:\n" in data
    assert "\n".join(initramfs.MODULES[1:]).encode() in data
    assert b"virtio_pci" not in data
