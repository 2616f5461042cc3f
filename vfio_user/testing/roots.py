"""Root file systems for guests of other architectures, and this package's extension for them.

A root holds Python, pytest, numpy and what they need: packages of one suite, unpacked, not configured. Its Python files
are compiled here, by the same Python built for this machine: emulated, that would take minutes. The extension is built
by the distribution's cross compiler from this checkout's sources.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vfio_user.testing import cache, debian
from vfio_user.testing.errors import GuestSetupError
from vfio_user.testing.machines import Machine

__all__ = ["ENVIRONMENT", "EXTENSION", "PACKAGE", "extension", "root"]

#: Suites that the packages may be of: the first that has them all. Mirrors do not keep all files of all architectures.
SUITES = ("trixie", "forky", "sid")
#: Where the package is in such a guest.
PACKAGE = "/usr/lib/python3/dist-packages/vfio_user"
#: Where its extension modules are; the guest puts them into the package.
EXTENSION = "/run/vfio-user/extension"
#: Variables of a command in such a guest.
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": EXTENSION,  # for the package's metadata, by which pytest finds its plugin
}

#: Part of a root's key: what is done with the packages.
_VERSION = "1"
_PACKAGES = (
    *("python3", "python3-cffi-backend", "python3-numpy"),
    *("python3-pytest", "python3-pytest-timeout", "python3-hypothesis"),
)
_UNUSED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/zoneinfo")
#: Libraries that there are several of to choose from: the packages' scripts would do it.
_CHOICES = ("blas/libblas.so.3", "lapack/liblapack.so.3")
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib"}
_FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp")
_DEADLINE = 600.0

_log = logging.getLogger(__name__)


def root(machine: Machine) -> Path:
    """Return the root file system for guests of `machine`, from the cache or made now (1 to 3 minutes).

    Later versions of the packages do not make it stale.

    Raises:
        GuestSetupError: its packages can't be had.
    """
    key = f"{machine.debian}-{cache.digest(_VERSION, *_PACKAGES, *SUITES)}"
    return cache.entry("root", key, lambda place: _make_root(machine, place))


def _make_root(machine: Machine, place: Path) -> None:
    suite = _unpack(_PACKAGES, machine.debian, place, SUITES)
    for name in _UNUSED:
        shutil.rmtree(place / name, ignore_errors=True)
    for folder in (place / "usr/lib").glob("python3*/dist-packages/numpy/**/tests"):
        shutil.rmtree(folder)
    for library in (each for name in _CHOICES for each in (place / "usr/lib").glob(f"*/{name}")):
        (library.parent.parent / library.name).symlink_to(f"{library.parent.name}/{library.name}")
    _compile_python(place, suite)


def _unpack(names: Sequence[str], architecture: str, place: Path, suites: Sequence[str]) -> str:
    """Unpack packages with all that they need as a root file system; return the suite that had them."""
    reasons = []
    for suite in suites:
        for folder in (*_FOLDERS, *_LINKS.values()):
            (place / folder).mkdir(parents=True, exist_ok=True)
        for name, target in _LINKS.items():
            (place / name).symlink_to(target)
        try:
            debian.unpack_all(debian.needed(names, suite, architecture), suite, architecture, place)
            return suite
        except GuestSetupError as error:
            reasons.append(f"{suite}: {str(error)[-400:]}")
            for path in place.iterdir():
                path.unlink() if path.is_symlink() else shutil.rmtree(path)
    raise GuestSetupError(f"{' '.join(names)} for {architecture} can't be had: " + "; ".join(reasons))


def _compile_python(place: Path, suite: str) -> None:
    """Write the compiled form of the root's Python files: it is the same on all architectures."""
    _log.info("compiling the Python files of the root")
    with tempfile.TemporaryDirectory(prefix=".python.", dir=cache.root()) as scratch:
        native = Path(scratch)
        architecture = _run(["dpkg", "--print-architecture"]).strip()
        _unpack(("python3-minimal", "libpython3-stdlib"), architecture, native, (suite,))
        (loader,) = (native / "usr").glob("lib*/ld-linux*.so.*")
        libraries = ":".join(str(path) for path in (native / "usr/lib").glob("*-linux-gnu"))
        (python,) = (native / "usr/bin").glob("python3.[0-9]*")
        # One process: more of them would be started without the loader.
        command = [str(loader), "--library-path", libraries, str(python), "-I", "-m", "compileall", "-q"]
        # Some files are there to be wrong, so its exit code says nothing.
        _run([*command, "-s", str(place), "-p", "/", str(place / "usr/lib")], check=False)
    if not any((place / "usr/lib").glob("python3.*/__pycache__/os.*.pyc")):
        raise GuestSetupError(f"compiling the Python files of {place.name} left nothing")


def extension(machine: Machine, package: Path) -> Path:
    """Return a folder with the package's extension modules for `machine`, from the cache or built now.

    Beside them is what the package needs and no suite has, as it is installed here.

    Args:
        machine: what they must run on.
        package: the package's folder in a checkout: the sources are beside it, in ``_cdefs``.

    Raises:
        GuestSetupError: there are no sources, no cross compiler, or it fails.
    """
    sources = package.parent / "_cdefs"
    backend = sources / "backend.py"
    if not backend.exists():
        raise GuestSetupError(
            f"{package} is not a checkout: the extension for {machine.arch} is built from the sources in _cdefs"
        )
    files = sorted(path for path in sources.rglob("*.[chp]*") if "build" not in path.relative_to(sources).parts)
    key = cache.digest(
        *SUITES, *_METADATA.values(), _BESIDE, *(part for path in files for part in (str(path), path.read_bytes()))
    )
    return cache.entry("extension", f"{machine.debian}-{key}", lambda place: _build_extension(machine, sources, place))


def _build_extension(machine: Machine, sources: Path, place: Path) -> None:
    compiler = f"{machine.cross}gcc"
    if shutil.which(compiler) is None:
        raise GuestSetupError(f"{compiler} is not installed; install the packages: {machine.packages}")
    _log.info("building the extension for %s", machine.arch)
    for name, text in _METADATA.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (beside,) = importlib.import_module(_BESIDE).__path__
    shutil.copytree(beside, place / _BESIDE, ignore=shutil.ignore_patterns("__pycache__"))
    with tempfile.TemporaryDirectory(prefix=".extension.", dir=cache.root()) as scratch:
        headers = Path(scratch) / "headers"
        headers.mkdir()
        _unpack(("libpython3-dev",), machine.debian, headers, SUITES)
        emitted = Path(scratch) / "_uapi.c"
        _run([sys.executable, "-c", _EMIT, str(sources), str(emitted)])
        (python,) = (headers / "usr/include").glob("python3.*")
        flags = [
            "-O2",
            "-fPIC",
            "-shared",
            "-DPy_LIMITED_API=0x030b0000",
            f"-I{python}",
            f"-I{headers / 'usr/include'}",
        ]
        flags += [f"-I{path}" for path in (headers / "usr/include").glob(f"{machine.cross.rstrip('-')}")]
        for name, more in (("_uapi", [emitted]), ("_mmio", [])):
            folder = sources / name.lstrip("_")
            files = [str(path) for path in (*sorted(folder.glob("*.c")), *more)]
            _run([compiler, *flags, f"-I{folder}", "-o", str(place / f"{name}.abi3.so"), *files])


#: What the package needs and no suite has.
_BESIDE = "ioctl_opt"
#: As pip would have written it.
_METADATA = {
    "vfio_user-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vfio_user\nVersion: 0\n",
    "vfio_user-0.dist-info/entry_points.txt": "[pytest11]\nvfio_user = vfio_user.testing.plugin\n",
}
#: Emit the C of `_uapi` with the same code as a build for this machine.
_EMIT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from backend import emit_uapi
emit_uapi(Path(sys.argv[2]), Path(sys.argv[1], "uapi"))
"""


def _run(command: Sequence[str], *, check: bool = True) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DEADLINE, check=False
        )
    except FileNotFoundError as error:
        raise GuestSetupError(f"{command[0]} is missing") from error
    if check and done.returncode:
        raise GuestSetupError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout
