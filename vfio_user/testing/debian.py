"""Packages of any Debian suite, fetched and unpacked in the cache: no root, and nothing on the host changes.

apt does the work (signatures, checksums, proxies), with a state of its own for each suite, beside the cache's
entries: its lists, its empty idea of what is installed, and a list with the machine's mirror and keyring.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from vfio_user.testing import aptsources, cache
from vfio_user.testing.aptsources import release
from vfio_user.testing.errors import GuestSetupError

__all__ = ["Package", "find", "needed", "newest", "release", "unpack", "unpack_all", "unpacked"]

#: Lists older than this are fetched again, in seconds; when the mirror does not answer they still serve.
LISTS_AGE = 24 * 3600.0
#: Deadline of one apt or dpkg command, in seconds; a kernel is 100 MB.
DEADLINE = 900.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one package."""

    name: str
    """Name without an architecture."""
    version: str
    """Version as the archive has it, epoch and revision included."""
    suite: str
    """The suite that it was found in."""
    depends: tuple[str, ...] = ()
    """Names of the packages that it depends on; the first of alternatives only, no version."""
    architecture: str = ""
    """The distribution's name of the architecture; empty for this machine's."""


def find(name: str, suite: str, architecture: str = "") -> Package:
    """Find the newest version of a package in a suite.

    Args:
        name: exact name of a binary package.
        suite: ``"bookworm"``, ``"trixie-backports"``, ``"sid"`` …: any that the machine's mirror carries.
        architecture: the distribution's name of it; empty for this machine's.

    Raises:
        GuestSetupError: there is no such package or suite, or the mirror can't be reached.
    """
    state = _AptState(suite, architecture)
    for fresh in (False, True):
        state.refresh(0.0 if fresh else LISTS_AGE)
        shown = state.run("apt-cache", "show", name, check=False)
        packages = [each for each in _stanzas(shown, suite, architecture) if each.name == name]
        if packages:
            return max(packages, key=lambda each: _version_key(each.version))
    raise GuestSetupError(f"{suite} has no package {name}")


def newest(name: str, suites: Iterable[str]) -> Package:
    """Find the newest version of a package in several suites, of which the mirror need not have all.

    Raises:
        GuestSetupError: none of the suites has it, or the mirror is out of reach; the message says why.
    """
    found: list[Package] = []
    reasons: list[str] = []
    for suite in suites:
        try:
            found.append(find(name, suite))
        except GuestSetupError as error:
            reasons.append(f"{suite}: {error}")
    if not found:
        raise GuestSetupError(f"no suite has {name}: " + "; ".join(reasons))
    return max(found, key=lambda each: _version_key(each.version))


def unpacked(package: Package) -> Path:
    """Give the directory in the cache with a package unpacked; it is fetched when missing or damaged.

    Raises:
        GuestSetupError: it can't be fetched or unpacked.
    """
    name = "_".join(part for part in (package.name, package.version, package.architecture) if part)
    return cache.entry("package", name, lambda place: unpack(package, place))


def unpack(package: Package, place: Path) -> None:
    """Fetch a package, whose checksum apt verifies, and unpack it into an existing directory.

    Raises:
        GuestSetupError: it can't be fetched or unpacked.
    """
    state = _AptState(package.suite, package.architecture)
    with state.scratch() as scratch:
        _log.info("fetching %s %s", package.name, package.version)
        # The suite may have moved on since the lists were fetched; the same version may still be there.
        state.run_fresh("apt-get", "download", f"{package.name}={package.version}", cwd=scratch)
        (deb,) = scratch.glob("*.deb")
        _command(["dpkg-deb", "--extract", str(deb), str(place)])


def needed(names: Iterable[str], suite: str, architecture: str) -> tuple[str, ...]:
    """Return packages and all that they depend on, as ``"libc6=2.41-12"``, for a machine that has none.

    Raises:
        GuestSetupError: there is no such set of packages, or the mirror can't be reached.
    """
    state = _AptState(suite, architecture)
    state.refresh(LISTS_AGE)
    shown = state.run_fresh("apt-get", "install", "-y", "--no-install-recommends", "--print-uris", *names)
    files = (line.split()[1] for line in shown.splitlines() if line.startswith("'"))
    return tuple(sorted("=".join(name.split("_")[:2]).replace("%3a", ":") for name in files))


def unpack_all(packages: Iterable[str], suite: str, architecture: str, place: Path) -> None:
    """Fetch packages, as `needed` names them, and unpack them into an existing directory; none is configured.

    Raises:
        GuestSetupError: they can't be fetched or unpacked.
    """
    state, wanted = _AptState(suite, architecture), tuple(packages)
    with state.scratch() as scratch:
        _log.info("fetching %d packages of %s for %s", len(wanted), suite, architecture)
        state.run_fresh("apt-get", "download", *wanted, cwd=scratch)
        for deb in sorted(scratch.glob("*.deb")):
            _command(["dpkg-deb", "--extract", str(deb), str(place)])


class _AptState:
    """A private apt for one suite and architecture."""

    def __init__(self, suite: str, architecture: str = "") -> None:
        self.suite = suite
        self._architecture = architecture
        self.place = cache.root() / "apt" / "-".join(part for part in (suite, architecture) if part)
        self.config = self.place / "apt.conf"
        self._stamp = self.place / "fetched"

    def refresh(self, age: float) -> None:
        """Fetch the lists unless those here are younger than `age`; old ones serve without a mirror."""
        if self._is_younger(age):
            return
        began = time.time()
        self.place.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self._is_younger(max(age, time.time() - began)):  # another process did it while we waited
                return
            self._configure()
            _log.info("fetching the package lists of %s", self.place.name)
            try:
                self.run("apt-get", "update", "--allow-releaseinfo-change", "--error-on=any")
            except GuestSetupError as error:
                if not self._stamp.exists():
                    raise
                _log.warning("using lists of %s that are not fresh: %s", self.suite, error)
                return
            self._stamp.touch()

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Run an apt command on this state and give its output."""
        return _command([command[0], "-c", str(self.config), *command[1:]], cwd=cwd, check=check)

    def run_fresh(self, *command: str, cwd: Path | None = None) -> str:
        """Run an apt command, and once more with new lists when it fails."""
        try:
            return self.run(*command, cwd=cwd)
        except GuestSetupError:
            self.refresh(0.0)
            return self.run(*command, cwd=cwd)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder to fetch into."""
        with tempfile.TemporaryDirectory(prefix=".fetch.", dir=self.place) as name:
            yield Path(name)

    def _is_younger(self, age: float) -> bool:
        try:
            return time.time() - self._stamp.stat().st_mtime < age
        except FileNotFoundError:
            return False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + DEADLINE
        with (self.place / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise GuestSetupError(f"another process has held {lock.name} for {DEADLINE:.0f} s") from None
                    time.sleep(0.1)
            yield

    def _configure(self) -> None:
        """Write the private configuration; apt reads it after the machine's own (proxies stay in force)."""
        for left_over in self.place.glob(".fetch.*"):
            if time.time() - left_over.stat().st_mtime > DEADLINE:
                shutil.rmtree(left_over, ignore_errors=True)
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.place / folder).mkdir(parents=True, exist_ok=True)
        (self.place / "status").touch()
        source = aptsources.mirror(aptsources.configured(), release())
        options = dict(source.options)
        if "BEGIN PGP" in options.get("signed-by", ""):
            keyring = self.place / "keyring.asc"
            # In a .sources file an empty line of the key is written as a dot.
            rows = ("" if row == "." else row for row in options["signed-by"].strip().splitlines())
            keyring.write_text("\n".join(rows) + "\n")
            options["signed-by"] = str(keyring)
        else:
            options = {name: ",".join(value.split()) for name, value in options.items()}
        shown = " ".join(f"{name}={value}" for name, value in options.items())
        (self.place / "sources.list").write_text(f"deb [{shown}] {source.uri} {self.suite} main\n".replace("[] ", ""))
        text = _CONFIGURATION.format(place=self.place)
        if self._architecture:
            text += f'APT::Architecture "{self._architecture}";\n#clear APT::Architectures;\n'
            text += f'APT::Architectures {{ "{self._architecture}"; }};\n'
        self.config.write_text(text)


# Hooks of the machine are for its own state (Docker images clean theirs up), and so are its pins.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
Dir::State "{place}";
Dir::State::status "{place}/status";
Dir::State::lists "{place}/lists";
Dir::Cache "{place}/cache";
Dir::Cache::archives "{place}/cache/archives";
Dir::Etc::sourcelist "{place}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "";
APT::Default-Release "";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "60";
"""


def _stanzas(text: str, suite: str, architecture: str) -> Iterator[Package]:
    for stanza in text.split("\n\n"):
        rows = dict(row.partition(": ")[::2] for row in stanza.splitlines() if not row.startswith(" "))
        if "Package" in rows and "Version" in rows:
            depends = f"{rows.get('Pre-Depends', '')},{rows.get('Depends', '')}".split(",")
            names = (each.split("|")[0].split("(")[0].strip().partition(":")[0] for each in depends)
            wanted = tuple(name for name in names if name)
            yield Package(rows["Package"], rows["Version"], suite, wanted, architecture)


def _compare_versions(left: str, right: str) -> int:
    """Compare as dpkg does; a tilde sorts before everything, so no plain comparison serves."""
    if left == right:
        return 0
    command = ["dpkg", "--compare-versions", left, "lt", right]
    return -1 if subprocess.run(command, check=False, timeout=DEADLINE).returncode == 0 else 1


_version_key = cmp_to_key(_compare_versions)


def _command(command: list[str], *, cwd: Path | None = None, check: bool = True) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            check=False,
            timeout=DEADLINE,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except FileNotFoundError as error:
        raise GuestSetupError(f"{command[0]} is missing: packages can be fetched on Debian only") from error
    except subprocess.TimeoutExpired as error:
        raise GuestSetupError(f"{' '.join(command)} did not end within {DEADLINE:.0f} s") from error
    if check and done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise GuestSetupError(f"{' '.join(command)} failed ({done.returncode}): {said}")
    return done.stdout
