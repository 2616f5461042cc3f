"""Where this machine gets its distribution's packages from: its apt sources, in both of apt's formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vfio_user.testing.errors import GuestSetupError

__all__ = ["Source", "configured", "mirror", "parse_deb822", "parse_list", "release"]

#: Suites that the main archive has besides those named after a release.
_ROLLING = frozenset({"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid", "experimental"})
#: Options that say how an archive is trusted; they must follow it to a private list.
_TRUST = frozenset({"signed-by", "trusted", "check-valid-until"})


@dataclass(frozen=True, slots=True)
class Source:
    """One archive of binary packages."""

    uri: str
    """Base of the archive, with its scheme."""
    suites: tuple[str, ...]
    """Suites that the machine uses of it."""
    components: tuple[str, ...]
    """``main`` and others; empty for a flat archive."""
    options: dict[str, str] = field(default_factory=dict)
    """Options about trust, in the one-line format's spelling: ``{"signed-by": "/usr/share/keyrings/…"}``."""


def release(os_release: Path = Path("/etc/os-release")) -> str:
    """Give the name of the Debian release that this machine runs: ``"trixie"``.

    Raises:
        GuestSetupError: the machine does not run Debian or something that calls itself like it.
    """
    try:
        rows = dict(row.partition("=")[::2] for row in os_release.read_text().splitlines())
    except OSError as error:
        raise GuestSetupError(f"can't tell which distribution this is: {error}") from error
    name = rows.get("VERSION_CODENAME", "").strip("'\"")
    if not name:
        raise GuestSetupError(f"{os_release} names no release (VERSION_CODENAME); packages come from Debian only")
    return name


def mirror(sources: Iterable[Source], codename: str) -> Source:
    """Choose the distribution's main archive among the sources of a machine that runs `codename`.

    Third parties often name their suites after the distribution's too, so an archive must have the component
    ``main``, and one whose path ends in ``/debian`` is preferred.

    Raises:
        GuestSetupError: no source is the main archive.
    """
    wanted = _ROLLING | {codename}
    found = [each for each in sources if "main" in each.components and wanted & set(each.suites)]
    if not found:
        raise GuestSetupError(
            f"none of the apt sources of this machine is the main archive of {codename}: "
            "add it to /etc/apt/sources.list"
        )
    return next((each for each in found if each.uri.rstrip("/").endswith("/debian")), found[0])


def configured(etc: Path = Path("/etc/apt")) -> tuple[Source, ...]:
    """Read all apt sources of a machine, in apt's order."""
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for path in files:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            found.extend(parse_list(text) if path.suffix == ".list" else parse_deb822(text))
    return tuple(found)


def parse_list(text: str) -> Iterator[Source]:
    """Read the one-line format: ``deb [options] URI SUITE COMPONENT...``."""
    row = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)")
    for line in text.splitlines():
        match = row.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(item.partition("=")[::2] for item in (match["options"] or "").split())
        yield Source(match["uri"], (match["suite"],), tuple(match["components"].split()), _trust(options))


def parse_deb822(text: str) -> Iterator[Source]:
    """Read the format of ``.sources`` files: stanzas of ``Field: value``, continued by indented lines."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", lines):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line.strip()
            elif ":" in line:
                name, value = (part.strip() for part in line.split(":", 1))
                name = name.lower()
                fields[name] = value
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
        ):
            continue
        suites, components = fields.get("suites", "").split(), fields.get("components", "").split()
        for uri in fields.get("uris", "").split():
            yield Source(uri, tuple(suites), tuple(components), _trust(fields))


def _trust(options: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in options.items() if name.lower() in _TRUST}
