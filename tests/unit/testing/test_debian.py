"""Packages from an archive that is made here, by the apt of this machine, without a network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vfio_user.testing import aptsources, debian
from vfio_user.testing.errors import GuestSetupError

if TYPE_CHECKING:
    from pathlib import Path

SUITE = "trixie"


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class Archive:
    """A Debian archive in a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.stanzas: list[str] = []

    def add(self, name: str, version: str, *, depends: str = "", content: str = "content") -> None:
        tree = self.place / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/share" / name).mkdir(parents=True)
        (tree / "usr/share" / name / "file").write_text(content)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        if depends:
            control += f"Depends: {depends}\n"
        control += "Description: made by a test\n"
        (tree / "DEBIAN/control").write_text(control)
        deb = self.place / f"pool_{name}_{version.replace(':', '_')}.deb"
        _run("dpkg-deb", "--root-owner-group", "--build", str(tree), str(deb))
        shutil.rmtree(tree)
        data = deb.read_bytes()
        self.stanzas.append(
            f"{control}Filename: {deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
        self.publish()

    def publish(self) -> None:
        packages = "\n".join(self.stanzas).encode()
        names = []
        for architecture in (_run("dpkg", "--print-architecture").strip(), "arm64", "all"):
            folder = self.place / "dists" / SUITE / "main" / f"binary-{architecture}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "Packages").write_bytes(packages)
            names.append(f"main/binary-{architecture}/Packages")
        rows = "\n".join(f" {hashlib.sha256(packages).hexdigest()} {len(packages)} {name}" for name in names)
        (self.place / "dists" / SUITE / "Release").write_text(
            f"Origin: Test\nSuite: {SUITE}\nCodename: {SUITE}\nArchitectures: all amd64 arm64\nComponents: main\n"
            f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S', time.gmtime())} UTC\nSHA256:\n{rows}\n"
        )


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    place = tmp_path / "archive"
    place.mkdir()
    source = aptsources.Source(f"file:{place}", (SUITE,), ("main",), {"trusted": "yes"})
    monkeypatch.setattr(aptsources, "configured", lambda: (source,))
    monkeypatch.setattr(debian, "release", lambda: SUITE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Archive(place)


def test_the_newest_version_is_found_as_dpkg_orders_them(archive: Archive) -> None:
    for version in ("7.3~rc1-1", "7.10-1", "7.9-1", "7.3-1"):
        archive.add("linux-thing", version, depends="libc6 (>= 2.3), first | second, third:any")
    package = debian.find("linux-thing", SUITE)
    assert package == debian.Package("linux-thing", "7.10-1", SUITE, ("libc6", "first", "third"))


def test_a_package_is_unpacked_once(archive: Archive) -> None:
    archive.add("thing", "1:2.0-1", content="hello")
    package = debian.find("thing", SUITE)
    place = debian.unpacked(package)
    assert (place / "usr/share/thing/file").read_text() == "hello"
    shutil.rmtree(archive.place)
    assert debian.unpacked(package) == place
    assert debian.find("thing", SUITE) == package, "lists that are fresh need no mirror"


def test_a_damaged_entry_heals(archive: Archive) -> None:
    archive.add("thing", "1", content="hello")
    place = debian.unpacked(debian.find("thing", SUITE))
    file = place / "usr/share/thing/file"
    file.write_text("hel")  # cut off
    assert debian.unpacked(debian.find("thing", SUITE)) == place
    assert file.read_text() == "hello"
    file.unlink()
    debian.unpacked(debian.find("thing", SUITE))
    assert file.read_text() == "hello"
    (place / ".complete").unlink()
    file.write_text("half-written")
    debian.unpacked(debian.find("thing", SUITE))
    assert file.read_text() == "hello"


def test_a_package_that_came_after_the_lists(archive: Archive) -> None:
    archive.add("thing", "1")
    debian.find("thing", SUITE)
    archive.add("other", "3")
    assert debian.find("other", SUITE).version == "3"


def test_old_lists_are_fetched_again_and_serve_without_a_mirror(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive.add("thing", "1")
    assert debian.find("thing", SUITE).version == "1"
    archive.add("thing", "2")
    assert debian.find("thing", SUITE).version == "1"
    monkeypatch.setattr(debian, "LISTS_AGE", 0.0)
    assert debian.find("thing", SUITE).version == "2"
    shutil.rmtree(archive.place)
    assert debian.find("thing", SUITE).version == "2"
    assert "lists of trixie that are not fresh" in caplog.text


def test_a_package_with_a_wrong_checksum_is_refused(archive: Archive) -> None:
    archive.add("thing", "1")
    package = debian.find("thing", SUITE)
    (deb,) = archive.place.glob("*.deb")
    data = bytearray(deb.read_bytes())
    data[-1] ^= 1
    deb.write_bytes(data)
    with pytest.raises(GuestSetupError, match=r"apt-get .*download thing=1 failed"):
        debian.unpacked(package)
    data[-1] ^= 1
    deb.write_bytes(data)
    assert (debian.unpacked(package) / "usr/share/thing/file").exists()


def test_what_can_not_be_had_is_named(archive: Archive) -> None:
    archive.add("thing", "1")
    with pytest.raises(GuestSetupError, match=f"{SUITE} has no package nothing"):
        debian.find("nothing", SUITE)
    with pytest.raises(GuestSetupError, match=r"apt-get .* update .*failed"):
        debian.find("thing", "no-such-suite")
    with pytest.raises(GuestSetupError, match=r"no suite has nothing: trixie: .*; no-such-suite: "):
        debian.newest("nothing", (SUITE, "no-such-suite"))


def test_newest_of_several_suites(archive: Archive) -> None:
    archive.add("thing", "1")
    assert debian.newest("thing", ("no-such-suite", SUITE)).suite == SUITE


def test_many_at_once_fetch_once(archive: Archive) -> None:
    archive.add("thing", "1")
    places: list[Path] = []

    def fetch() -> None:
        places.append(debian.unpacked(debian.find("thing", SUITE)))

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(places) == 6
    assert len(set(places)) == 1


def test_nothing_on_the_machine_changes(archive: Archive, tmp_path: Path) -> None:
    def stamps() -> dict[str, int]:
        return {
            path: os.stat(path).st_mtime_ns
            for path in ("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/apt/archives", "/var/lib/dpkg/status")
            if os.path.exists(path)
        }

    before = stamps()
    archive.add("thing", "1")
    debian.unpacked(debian.find("thing", SUITE))
    assert stamps() == before
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "cache"}


def test_a_machine_without_apt(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GuestSetupError, match="apt-get is missing: packages can be fetched on Debian only"):
        debian.find("thing", SUITE)


def test_packages_come_with_all_that_they_need_for_any_architecture(archive: Archive, tmp_path: Path) -> None:
    archive.add("base", "1:1-1", content="base")
    archive.add("thing", "2", depends="base")
    packages = debian.needed(["thing"], SUITE, "arm64")
    assert packages == ("base=1:1-1", "thing=2")
    place = tmp_path / "root"
    place.mkdir()
    debian.unpack_all(packages, SUITE, "arm64", place)
    assert (place / "usr/share/base/file").read_text() == "base"
    assert (place / "usr/share/thing/file").exists()
    with pytest.raises(GuestSetupError, match="nothing"):
        debian.needed(["nothing"], SUITE, "arm64")
