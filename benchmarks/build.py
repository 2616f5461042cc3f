"""Compile the C peers: ``library("dma")`` is ``native/dma.c``, loaded."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import sysconfig
from pathlib import Path

__all__ = ["CACHE", "compile_all", "library"]

_SOURCES = Path(__file__).parent / "native"
#: Compiled peers; a guest finds them here, and has no need of a compiler.
CACHE = Path(__file__).parent.parent / ".out" / "benchmarks"
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread")


def library(name: str) -> ctypes.CDLL:
    """Load a peer, compiled if that was not done yet; calls through it release the GIL."""
    return ctypes.CDLL(str(_compiled(_SOURCES / f"{name}.c")))


def compile_all() -> None:
    """Compile every peer, before a guest needs them."""
    for source in sorted(_SOURCES.glob("*.c")):
        _compiled(source)


def _compiled(source: Path) -> Path:
    headers = sorted(_SOURCES.glob("*.h"))
    content = b"".join(path.read_bytes() for path in (source, *headers)) + " ".join(_FLAGS).encode()
    target = CACHE / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not target.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise FileNotFoundError(f"{source.name} is not compiled, and there is no C compiler: install gcc")
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(".new")
        include = f"-I{sysconfig.get_paths()['include']}"
        subprocess.run([compiler, *_FLAGS, include, "-o", str(scratch), str(source)], check=True, timeout=120)
        scratch.rename(target)
    return target
