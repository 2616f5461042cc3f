"""Kernels for guests, from the distribution's packages: fetched, unpacked in the cache, never installed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from vfio_user.testing import cache, debian, feature
from vfio_user.testing.errors import GuestSetupError, GuestSpecError
from vfio_user.testing.machines import Machine

__all__ = ["STOCK", "Kernel", "busybox", "newest", "resolve"]

#: Kernels by name, and the distribution's release that has them; None is the release of this machine.
STOCK: dict[str, str | None] = {"stock": None, "6.1": "bookworm", "6.12": "trixie"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel and its modules."""

    image: Path
    """What QEMU boots."""
    release: str
    """What ``uname -r`` says; ``built-in`` for an image without modules."""
    modules: Path | None
    """Directory with modules.dep, or None when everything is built in."""
    key: str
    """Changes when the kernel does."""


def resolve(name: str, machine: Machine) -> Kernel:
    """Return the kernel that a user calls `name`.

    Args:
        name: one of `Machine.kernels`, empty for the first of them, or the path of an image (then everything that the
            guest needs must be built in) or of a directory with ``vmlinuz`` and ``lib/modules/RELEASE``.
        machine: what it must run on.

    Raises:
        GuestSpecError: no such kernel.
        GuestSetupError: its package can't be had, or the feature kernel can't be built.
    """
    name = name or machine.kernels[0]
    if name in machine.kernels:
        if name in STOCK:
            return _stock(STOCK[name], machine)
        image, key = feature.build(machine)
        return Kernel(image, f"feature-{key}", None, f"{machine.arch}-{key}")
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        return _in_tree(path, str(path))
    if path.is_file():
        stamp = path.stat()
        return Kernel(path, "built-in", None, f"{path}:{stamp.st_mtime_ns}:{stamp.st_size}")
    known = ", ".join(machine.kernels)
    raise GuestSpecError(f"there is no kernel {name!r} for {machine.arch}; take {known}, or the path of an image")


def busybox(machine: Machine) -> Path:
    """Return the static busybox of this machine's release, built for `machine`."""
    place = debian.unpacked(newest("busybox-static", debian.release(), machine))
    program = place / "usr/bin/busybox"
    return program if program.exists() else place / "bin/busybox"


def newest(name: str, suite: str, machine: Machine) -> debian.Package:
    """Return today's version of a package; apt takes seconds to say, so its answer is kept for as long as its lists."""

    def ask() -> str:
        package = debian.find(name, suite, machine.apt)
        if name.startswith("linux-image-"):  # a metapackage that names the current kernel
            names = [each for each in package.depends if each.startswith("linux-image-")]
            if not names:
                raise GuestSetupError(f"{name} of {suite} names no kernel; it depends on {package.depends}")
            package = debian.find(names[0], suite, machine.apt)
        return f"{package.name} {package.version}"

    question = "-".join(part for part in (name, suite, machine.apt) if part)
    found, version = cache.remembered(question, debian.LISTS_AGE, ask).split()
    return debian.Package(found, version, suite, (), machine.apt)


def _stock(suite: str | None, machine: Machine) -> Kernel:
    package = newest(f"linux-image-{machine.debian}", suite or debian.release(), machine)
    place = cache.entry(
        "kernel", f"{package.name}_{package.version}", lambda place: _unpack_kernel(package, busybox(machine), place)
    )
    return _in_tree(place, f"{package.name}={package.version}")


def _unpack_kernel(package: debian.Package, busybox: Path, place: Path) -> None:
    """Unpack a kernel as ``vmlinuz`` and ``lib/modules/RELEASE``, with the modules.dep that packages lack."""
    debian.unpack(package, place)
    if not (place / "lib/modules").is_dir():  # Debian 13 and later
        (place / "usr/lib").rename(place / "lib")
    (image,) = (place / "boot").glob("vmlinuz-*")
    image.rename(place / "vmlinuz")
    (modules,) = (place / "lib/modules").iterdir()
    command = [str(busybox), "depmod", "-b", str(place), modules.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise GuestSetupError(f"depmod of kernel {modules.name} failed: {done.stderr.strip()}")


def _in_tree(place: Path, key: str) -> Kernel:
    image = place / "vmlinuz"
    releases = sorted((place / "lib/modules").glob("*")) if (place / "lib/modules").is_dir() else []
    if not image.is_file() or len(releases) != 1 or not (releases[0] / "modules.dep").is_file():
        raise GuestSpecError(f"{place} must have vmlinuz, and lib/modules/RELEASE with modules.dep")
    return Kernel(image, releases[0].name, releases[0], key)
