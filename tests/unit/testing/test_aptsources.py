from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vfio_user.testing import aptsources
from vfio_user.testing.aptsources import Source
from vfio_user.testing.errors import GuestSetupError

if TYPE_CHECKING:
    from pathlib import Path

STANZAS = """\
# Comment: not a field
Types: deb deb-src
URIs: http://mirror.example/debian http://second.example/debian/
Suites: trixie trixie-updates
# inside of a stanza
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no

Types: deb-src
URIs: http://source.example/debian
Suites: trixie
Components: main
\t
Types: deb
URIs: http://key.example/debian
Suites: sid
Components: main
Trusted: yes
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY865
 -----END PGP PUBLIC KEY BLOCK-----
"""

LINES = """\
# deb http://off.example/debian trixie main
deb http://plain.example/debian trixie main contrib # comment
deb [ arch=amd64,arm64 signed-by=/k.gpg Trusted=yes ] https://options.example/debian bookworm main
deb-src http://source.example/debian trixie main
deb https://flat.example/ ./
deb
nonsense
"""


def test_stanzas() -> None:
    sources = list(aptsources.parse_deb822(STANZAS))
    assert [source.uri for source in sources] == [
        "http://mirror.example/debian",
        "http://second.example/debian/",
        "http://key.example/debian",
    ]
    assert sources[0].suites == ("trixie", "trixie-updates")
    assert sources[0].components == ("main", "contrib")
    assert sources[0].options == {"signed-by": "/usr/share/keyrings/debian-archive-keyring.gpg"}
    assert sources[2].options["trusted"] == "yes"
    key = sources[2].options["signed-by"].split()
    assert key[:3] == ["-----BEGIN", "PGP", "PUBLIC"]
    assert "mDMEY865" in key


def test_lines() -> None:
    assert list(aptsources.parse_list(LINES)) == [
        Source("http://plain.example/debian", ("trixie",), ("main", "contrib")),
        Source("https://options.example/debian", ("bookworm",), ("main",), {"signed-by": "/k.gpg", "trusted": "yes"}),
        Source("https://flat.example/", ("./",), ()),
    ]


def test_all_files_of_a_machine_are_read_in_order(tmp_path: Path) -> None:
    assert aptsources.configured(tmp_path) == ()
    (tmp_path / "sources.list").write_text("deb http://first.example/debian sid main\n")
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "b.sources").write_text(STANZAS)
    (parts / "a.list").write_bytes(b"# Latin-1: \xe9\ndeb http://second.example/debian sid main\n")
    (parts / "c.list.save").write_text("deb http://saved.example/debian sid main\n")
    assert [source.uri for source in aptsources.configured(tmp_path)][:3] == [
        "http://first.example/debian",
        "http://second.example/debian",
        "http://mirror.example/debian",
    ]


THIRD = Source("https://third.example/repo", ("trixie",), ("main",))
SECURITY = Source("http://mirror.example/debian-security", ("trixie-security",), ("main",))
STABLE = Source("https://stable.example/linux/debian", ("trixie",), ("stable",))
OWN = Source("http://mirror.example/debian/", ("trixie", "trixie-updates"), ("main",))


def test_the_mirror_is_the_main_archive() -> None:
    assert aptsources.mirror([THIRD, SECURITY, STABLE, OWN], "trixie") is OWN
    assert aptsources.mirror([STABLE, THIRD], "trixie") is THIRD
    assert aptsources.mirror([Source("http://m/debian", ("sid",), ("main",))], "forky").uri == "http://m/debian"


@pytest.mark.parametrize("sources", [[], [SECURITY, STABLE]])
def test_no_main_archive(sources: list[Source]) -> None:
    with pytest.raises(GuestSetupError, match=r"main archive of trixie: add it to /etc/apt"):
        aptsources.mirror(sources, "trixie")


@pytest.mark.parametrize(
    "text", ["VERSION_CODENAME=trixie\n", "ID=debian\nVERSION_CODENAME='trixie'", 'VERSION_CODENAME="trixie"']
)
def test_release(text: str, tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(text)
    assert aptsources.release(tmp_path / "os-release") == "trixie"


def test_release_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(GuestSetupError, match="can't tell which distribution"):
        aptsources.release(tmp_path / "os-release")
    (tmp_path / "os-release").write_text("ID=arch\n")
    with pytest.raises(GuestSetupError, match="names no release"):
        aptsources.release(tmp_path / "os-release")
