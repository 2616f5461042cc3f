"""The wheel, built from the source distribution, built from a clean copy of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "*.o")

pytestmark = pytest.mark.timeout(300)  # the fixture compiles both extensions


def build(folder: Path, hook: str, target: Path) -> Path:
    """Run a hook of the build back end, as pip does, with the packages of this environment."""
    target.mkdir()
    code = f"import sys; sys.path.insert(0, '_cdefs'); import backend; backend.{hook}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=folder, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "standard file not found" not in done.stdout + done.stderr
    (result,) = target.iterdir()
    return result


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, place / "copy", ignore=NOT_SOURCE)
    return build(place / "copy", "build_sdist", place / "out")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return build(place / sdist.name.removesuffix(".tar.gz"), "build_wheel", place / "out")


def sources() -> set[str]:
    """Every file of the package in the checkout."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "vfio_user").rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }


def test_the_source_distribution_has_what_the_build_needs_and_nothing_emitted(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        str(path.relative_to(ROOT)) for kind in ("*.c", "*.h", "*.cdef") for path in (ROOT / "_cdefs").rglob(kind)
    }
    emitted = {name for name in needed if name.startswith("_cdefs/build/")}
    assert names >= (needed - emitted) | sources() | {"_cdefs/backend.py", "pyproject.toml", "LICENSE", "README.md"}
    assert not names & emitted


def test_the_wheel_has_the_package_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if FREE_THREADED else ".abi3.so"
    extensions = {f"vfio_user/_uapi{suffix}", f"vfio_user/_mmio{suffix}"}
    assert names == sources() | extensions
    assert {"vfio_user/py.typed", "vfio_user/_uapi.pyi", "vfio_user/_mmio.pyi"} <= names


def test_the_wheel_serves_every_python_that_its_interpreter_can_build_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        text = archive.read(name).decode()
    assert "Root-Is-Purelib: false" in text
    # The limited API of 3.11 does not load without a GIL.
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    tag = f"{own}-{own}t" if FREE_THREADED else "cp311-abi3"
    assert f"-{tag}-linux_" in wheel.name
    assert f"Tag: {tag}-linux_" in text


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {
            name.rpartition("/")[2]: archive.read(name).decode() for name in archive.namelist() if "dist-info" in name
        }
    rows = info["METADATA"].splitlines()
    required = {row.removeprefix("Requires-Dist: ") for row in rows if row.startswith("Requires-Dist: ")}
    assert {name.split(">")[0] for name in required if "extra ==" not in name} == {"cffi", "ioctl-opt"}
    assert {row for row in rows if row.startswith("Provides-Extra")} == {
        "Provides-Extra: cli",
        "Provides-Extra: guest",
        "Provides-Extra: numpy",
    }
    assert "Requires-Python: >=3.11" in rows
    assert "vfio-user = vfio_user.cli:main" in info["entry_points.txt"]
    assert "License-Expression: MIT" in rows


def test_the_wheel_works_from_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import vfio_user, vfio_user._mmio, vfio_user._uapi\n"
        "print(vfio_user.__file__, vfio_user._uapi.lib.VFIO_DEVICE_GET_INFO)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == [str(tmp_path / "vfio_user" / "__init__.py"), str(0x3B6B)], done.stderr
