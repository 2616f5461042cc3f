"""Roots and extensions for other architectures, and edited device trees: what is fallen back to, what is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_user.testing import debian, devicetree, machines, roots
from vfio_user.testing.errors import GuestSetupError

ARM64 = machines.named("arm64")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/vfio-user").mkdir(parents=True)
    return tmp_path / "cache"


class Mirror:
    """Packages of some suites only; unpacking leaves a file that says whose."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *suites: str) -> None:
        self.suites = suites
        monkeypatch.setattr(debian, "needed", lambda names, suite, architecture: tuple(names))
        monkeypatch.setattr(debian, "unpack_all", self.unpack_all)

    def unpack_all(self, packages: tuple[str, ...], suite: str, architecture: str, place: Path) -> None:
        (place / "usr/bin" / suite).write_text(architecture)
        if suite not in self.suites:
            raise GuestSetupError(f"404 {suite}")


def test_the_first_suite_that_has_all_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mirror(monkeypatch, "forky", "sid")
    place = tmp_path / "root"
    place.mkdir()
    assert roots._unpack(("python3",), "s390x", place, roots.SUITES) == "forky"
    assert (place / "bin/forky").read_text() == "s390x"
    assert not (place / "bin/trixie").exists(), "half a suite is no root"


def test_no_suite_at_all_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mirror(monkeypatch)
    place = tmp_path / "root"
    place.mkdir()
    with pytest.raises(GuestSetupError, match=r"python3 for s390x can't be had: trixie: 404.*forky: 404.*sid: 404"):
        roots._unpack(("python3",), "s390x", place, roots.SUITES)
    assert not any(place.iterdir())


def test_a_root_has_what_the_scripts_of_packages_would_have_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack_all(packages: tuple[str, ...], suite: str, architecture: str, place: Path) -> None:
        for name in ("s390x-linux-gnu/blas/libblas.so.3", "python3/dist-packages/numpy/lib/tests/test_io.py"):
            (place / "usr/lib" / name).parent.mkdir(parents=True)
            (place / "usr/lib" / name).write_text(name)

    monkeypatch.setattr(debian, "needed", lambda names, suite, architecture: tuple(names))
    monkeypatch.setattr(debian, "unpack_all", unpack_all)
    monkeypatch.setattr(roots, "_compile_python", lambda place, suite: None)
    place = tmp_path / "root"
    place.mkdir()
    roots._make_root(machines.named("s390x"), place)
    assert (place / "lib/s390x-linux-gnu/libblas.so.3").read_text() == "s390x-linux-gnu/blas/libblas.so.3"
    assert not (place / "usr/lib/python3/dist-packages/numpy/lib/tests").exists()


def test_a_package_without_its_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuestSetupError, match=r"not a checkout.*_cdefs"):
        roots.extension(ARM64, tmp_path / "site-packages/vfio_user")


def test_a_missing_compiler_is_named_by_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_cdefs").mkdir()
    (tmp_path / "_cdefs/backend.py").write_text("")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(GuestSetupError, match=r"gcc is not installed; install the packages: .*gcc-aarch64-linux-gnu"):
        roots.extension(ARM64, tmp_path / "vfio_user")


TREE = """
/dts-v1/;
/ {
    #address-cells = <1>;
    #size-cells = <1>;
    smmuv3@9050000 { phandle = <0x8007>; };
    pl031@9010000 { compatible = "arm,pl031"; };
};
"""


def fake_qemu(place: Path) -> Path:
    """Write a program that dumps the tree, as QEMU does for ``dumpdtb``."""
    subprocess.run(["dtc", "-O", "dtb", "-o", str(place / "source.dtb")], input=TREE, text=True, check=True)
    program = place / "qemu"
    program.write_text(f'#!/bin/sh\ncp {place}/source.dtb "${{2#*dumpdtb=}}"\n')
    program.chmod(0o755)
    return program


def test_a_device_gets_behind_the_iommu(tmp_path: Path) -> None:
    line = [str(fake_qemu(tmp_path)), "-machine", "virt"]
    tree = devicetree.edited(line, {"/pl031@9010000": 0x501}, tmp_path)
    shown = subprocess.run(["fdtget", "-t", "x", str(tree), "/pl031@9010000", "iommus"], capture_output=True, text=True)
    assert shown.stdout.split() == ["8007", "501"]
    assert line == [str(tmp_path / "qemu"), "-machine", "virt"]


def test_a_tree_that_can_not_be_edited_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = [str(fake_qemu(tmp_path)), "-machine", "virt"]
    with pytest.raises(GuestSetupError, match=r"editing the device tree: fdtput.*failed"):
        devicetree.edited(line, {"/nothing@0/below": 1}, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestSetupError, match=r"install the package device-tree-compiler"):
        devicetree._run(["fdtget"])
