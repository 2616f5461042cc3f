"""PEP 517 build back end: setuptools, with the C of ``vfio_user._uapi`` emitted first.

The hooks are setuptools' own. Two of its commands are replaced (``pyproject.toml`` names them):
``build_ext`` expands the patterns that list sources, emits the C and chooses between the limited API and a
build for one interpreter; ``bdist_wheel`` names the wheel to match.
"""

from __future__ import annotations

import glob
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

if TYPE_CHECKING:
    from setuptools import Extension

__all__ = [
    "BdistWheel",
    "BuildExt",
    "build_editable",
    "build_sdist",
    "build_wheel",
    "emit_uapi",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

UAPI_MODULE = "vfio_user._uapi"
EMITTED = Path("_cdefs/build/_uapi.c")
DECLARATIONS = Path("_cdefs/uapi")
# In this order for cffi and for the compiler: the contents of vfio_zdev.h use those of vfio.h.
HEADERS = ("vfio.h", "iommufd.h", "vfio_ccw.h", "vfio_zdev.h", "syscalls.h", "columns.h")
SYSTEM_HEADERS = ("stddef.h", "stdint.h", "sys/mman.h", "linux/mman.h")
# Declarations for cffi only: numbers that the system headers have.
SYSTEM_CONSTANTS = "mman.cdef"

LIMITED_API = "0x030b0000"
LIMITED_API_TAG = "cp311"
# The limited API of these versions does not load where the GIL can be absent.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

WARNINGS = ["-O2", "-Wall", "-Wextra", "-Werror"]


def emit_uapi(target: Path = EMITTED, declarations: Path = DECLARATIONS) -> None:
    """Write the C source of ``vfio_user._uapi`` to ``target``, and only if it differs from what is there.

    The same headers are cffi's declarations and the compiler's, so a declaration is written once.
    """
    from cffi import FFI

    ffi = FFI()
    ffi.cdef("\n".join((declarations / name).read_text() for name in (*HEADERS, SYSTEM_CONSTANTS)))
    preamble = [f"#include <{name}>" for name in SYSTEM_HEADERS] + [f'#include "{name}"' for name in HEADERS]
    ffi.set_source(UAPI_MODULE, "\n".join(preamble) + "\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_c_code(str(target))


class BuildExt(build_ext):
    """Build the two extensions, for the limited API where the interpreter has one."""

    def finalize_options(self) -> None:
        """Expand the patterns in ``sources`` and ``depends``, then set what every extension shares."""
        super().finalize_options()
        for ext in self.extensions or ():
            ext.sources = _expand(ext.sources)
            ext.depends = _expand(ext.depends)
            ext.extra_compile_args = [*WARNINGS, *ext.extra_compile_args]
            _choose_api(ext)

    def run(self) -> None:
        """Emit the C of ``_uapi``, then build."""
        emit_uapi()
        super().run()

    def get_source_files(self) -> list[str]:
        """Name what a source distribution holds: everything but the emitted C."""
        return [name for name in super().get_source_files() if Path(name) != EMITTED]


class BdistWheel(bdist_wheel):
    """Tag the wheel for the limited API, unless the interpreter is free-threaded."""

    def finalize_options(self) -> None:
        """Choose the tag before setuptools checks it."""
        if not FREE_THREADED:
            self.py_limited_api = LIMITED_API_TAG
        super().finalize_options()


def _choose_api(ext: Extension) -> None:
    ext.py_limited_api = not FREE_THREADED
    if FREE_THREADED:
        # cffi's header would otherwise define Py_LIMITED_API by itself. Empty, as where newer versions of cffi
        # define it in the C that they emit: another value would be a redefinition, and that an error.
        ext.define_macros.append(("_CFFI_NO_LIMITED_API", ""))
    else:
        ext.define_macros.append(("Py_LIMITED_API", LIMITED_API))


def _expand(patterns: list[str]) -> list[str]:
    names: list[str] = []
    for pattern in patterns:
        names.extend(sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern])
    return names
