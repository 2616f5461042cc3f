"""The feature kernels: built from the distribution's kernel source, with what distributions leave out.

iommufd and the VFIO cdev, noiommu, the mdev samples, AER injection, a mock IOMMU, buses that only other architectures
have: the lists are in `kernel/`, one for each machine. A build takes 5 to 13 minutes on two cores, once for each list;
later source versions do not make it stale.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from vfio_user.testing import cache, debian
from vfio_user.testing.errors import GuestSetupError
from vfio_user.testing.machines import Machine

__all__ = ["SUITES", "build", "differences"]

#: Where the newest kernel source may be.
SUITES = ("sid", "trixie-backports", "bookworm-backports", "trixie")

_TOOLS = {
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "tar": "tar",
    "xz": "xz-utils",
}
_HEADERS = {"libelf.h": "libelf-dev", "openssl/ssl.h": "libssl-dev"}
_DEADLINE = 3600.0  # seconds for the whole build
_REPORT = 15.0  # seconds between lines of progress

_log = logging.getLogger(__name__)


def build(machine: Machine) -> tuple[Path, str]:
    """Return a machine's feature kernel and its key, building it when the cache has none for today's list.

    Raises:
        GuestSetupError: source or tools are missing, or the build fails; the message has the end of its log.
    """
    fragment = (resources.files("vfio_user.testing") / "kernel" / machine.config).read_text()
    kind = machine.config.replace(".config", "-kernel")
    mark = cache.digest(fragment)
    for place in cache.entries(kind, f"*-{mark}"):
        return place / machine.target, place.name
    _check_tools(machine)
    meta = debian.newest("linux-source", SUITES)
    names = [name for name in meta.depends if name.startswith("linux-source-")]
    if not names:
        raise GuestSetupError(f"linux-source of {meta.suite} names no source; it depends on {meta.depends}")
    source = debian.find(names[0], meta.suite)
    place = cache.entry(kind, f"{source.version}-{mark}", lambda place: _build(machine, source, fragment, place))
    return place / machine.target, place.name


def differences(fragment: str, config: str) -> list[str]:
    """Return the rows of `fragment` that a finished kernel configuration does not have."""
    rows = set(config.splitlines())
    wanted = [row for row in fragment.splitlines() if re.match(r"CONFIG_\w+=|# CONFIG_\w+ is not set", row)]
    absent = [row for row in wanted if row.endswith(" is not set")]
    set_names = {row.partition("=")[0] for row in rows if row.startswith("CONFIG_")}
    return [row for row in wanted if row not in rows and row not in absent] + [
        row for row in absent if row.split()[1] in set_names
    ]


def _check_tools(machine: Machine) -> None:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    include = [Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu")]
    missing += [
        package for header, package in _HEADERS.items() if not any((folder / header).exists() for folder in include)
    ]
    if machine.foreign and shutil.which(f"{machine.cross}gcc") is None:
        missing.append(f"gcc-{machine.cross.rstrip('-')}")
    if missing:
        raise GuestSetupError(f"building the {machine.arch} kernel needs these packages: {' '.join(missing)}")


def _build(machine: Machine, source: debian.Package, fragment: str, place: Path) -> None:
    """Unpack, configure and compile below the cache; leave the image and ``config`` in `place`."""
    _log.info("building the %s kernel from %s %s: some minutes, once", machine.arch, source.name, source.version)
    (archive,) = (debian.unpacked(source) / "usr/src").glob("linux-source-*.tar.xz")
    with tempfile.TemporaryDirectory(prefix=".kernel-build.", dir=cache.root()) as scratch_name:
        scratch = Path(scratch_name)
        log = scratch / "build.log"
        steps = _Steps(log, time.monotonic() + _DEADLINE)
        steps.run("unpacking", ["tar", "-xf", str(archive), "--strip-components=1"], _made(scratch / "source"))
        tree = scratch / "source"
        (tree / machine.config).write_text(fragment)
        target = {"ARCH": machine.linux, "CROSS_COMPILE": machine.cross if machine.foreign else ""}
        steps.run("configuring", ["make", "tinyconfig"], tree, target)
        merge = ["scripts/kconfig/merge_config.sh", "-m", ".config", machine.config]
        steps.run("configuring", merge, tree, target)
        steps.run("configuring", ["make", "olddefconfig"], tree, target)
        config = (tree / ".config").read_text()
        lost = differences(fragment, config)
        if lost:
            raise GuestSetupError(f"{source.name} {source.version} does not take {', '.join(lost)}")
        make = ["make", f"-j{os.cpu_count() or 1}", machine.target]
        steps.run("compiling", make, tree, target | {"KCFLAGS": "-w"})
        shutil.copyfile(tree / machine.image, place / machine.target)
        (place / "config").write_text(config)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


class _Steps:
    """Commands of one build: one log, one deadline, a line of progress now and then."""

    def __init__(self, log: Path, deadline: float) -> None:
        self._log = log
        self._deadline = deadline

    def run(self, name: str, command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        begin = reported = time.monotonic()
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                ["nice", "-n", "10", *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(environment or {}),
                start_new_session=True,
            )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                if now > self._deadline:
                    raise GuestSetupError(f"the kernel's build did not end within {_DEADLINE:.0f} s ({name})")
                if now - reported > _REPORT:
                    reported = now
                    done = self._log.read_bytes().count(b"\n")
                    _log.info("kernel: %s, %d s, %d steps", name, now - begin, done)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)  # make's children too
            process.wait()
        if process.returncode:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise GuestSetupError(f"building the kernel failed ({name}, {process.returncode}):\n{tail}")


def _environment(
    more: Mapping[str, str], removed: Iterable[str] = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
) -> dict[str, str]:
    """Return this process's environment without what an outer make left in it."""
    return {name: value for name, value in os.environ.items() if name not in removed} | dict(more)
