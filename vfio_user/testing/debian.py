"""Fetch Debian packages without installing them: a private apt state in the cache, no root, no change to the host.

The mirror is the one that this machine's apt is set up for; the release may be another than the machine's.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from vfio_user.testing import cache
from vfio_user.testing.errors import GuestSetupError

__all__ = ["Package", "find", "release", "unpack", "unpacked"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FRESH = 24 * 3600.0  # seconds for which package lists are good
_TIMEOUT = 900.0  # seconds for one run of apt; a kernel's source package has 170 MB


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package, as a release has it."""

    name: str
    """Binary package."""
    version: str
    """Debian's version."""
    suite: str
    """Release that it comes from."""
    depends: tuple[str, ...]
    """Names of the packages that it depends on; the first of alternatives."""


def release() -> str:
    """Return the code name of this machine's release: ``bookworm``."""
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    return "sid"  # testing and unstable have no code name there


def find(name: str, suite: str) -> Package:
    """Return the newest version of package `name` in `suite`, without fetching it.

    Raises:
        GuestSetupError: apt, mirror or package can't be had.
    """
    _update(suite)
    shown = _apt(suite, "apt-cache", "show", "--no-all-versions", name)
    fields = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line and not line.startswith(" "))
    if "Version" not in fields:
        raise GuestSetupError(f"release {suite} has no package {name}")
    names = [part.split("|")[0].split("(")[0].strip() for part in fields.get("Depends", "").split(",")]
    return Package(name, fields["Version"], suite, tuple(name for name in names if name))


def unpack(package: Package, place: Path) -> None:
    """Fetch `package`, checked against the release's signature, and unpack it below `place`."""
    downloads = _state(package.suite) / "downloads"
    downloads.mkdir(exist_ok=True)
    stem = f"{package.name}_{package.version.replace(':', '%3a')}_"
    _apt(package.suite, "apt-get", "-q", "download", f"{package.name}={package.version}", cwd=downloads)
    for archive in downloads.glob(f"{stem}*.deb"):
        try:
            _run(["dpkg-deb", "--extract", str(archive), str(place)])
        finally:
            archive.unlink()
        return
    raise GuestSetupError(f"apt fetched no file of package {package.name} {package.version}")


def unpacked(package: Package) -> Path:
    """Return the directory in the cache that `package` is unpacked in."""
    return cache.entry("package", f"{package.name}_{package.version}", lambda place: unpack(package, place))


def _state(suite: str) -> Path:
    return cache.root() / "apt" / suite


def _mirror() -> str:
    """Return the address of the Debian mirror that this machine's apt uses."""
    _need("apt-get")
    wanted = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    rows = _run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"]).splitlines()
    for row in rows:
        address, suite, component = row.split("|")
        if component == "main" and "-" not in suite:  # neither -security nor -updates
            return address
    raise GuestSetupError("apt has no Debian mirror with a component 'main'; add one to its sources")


def _update(suite: str) -> None:
    """Fetch the package lists of `suite` when they are missing or old; old ones do when the mirror is away."""
    state = _state(suite)
    stamp = state / "updated"
    if stamp.exists() and time.time() - stamp.stat().st_mtime < _FRESH:
        return
    if not _KEYRING.exists():
        raise GuestSetupError(f"{_KEYRING} is missing; install the package debian-archive-keyring")
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n")
    try:
        _apt(suite, "apt-get", "-q", "update", "--error-on=any")
    except GuestSetupError:
        if not stamp.exists():
            raise
    stamp.touch()


def _apt(suite: str, program: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run a program of apt on the private state of `suite`."""
    state = _state(suite)
    options = {
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": state / "cache",
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/nonexistent",
        "Dir::Etc::Preferences": "/nonexistent",
        "Dir::Etc::PreferencesParts": "/nonexistent",
        "APT::Sandbox::User": "",  # the cache is not readable for apt's own user
        "APT::Default-Release": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "1",
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    return _run([program, *flags, *arguments], cwd=cwd)


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise GuestSetupError(f"{program} is not on this machine: packages for the guest come from Debian; run there")


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise GuestSetupError(f"{command[0]} did not end within {_TIMEOUT:.0f} s: {' '.join(command)}") from error
    if done.returncode:
        raise GuestSetupError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
