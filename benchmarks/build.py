"""Compile the C peers: ``library("dma")`` is ``native/dma.c``, loaded."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

__all__ = ["CACHE", "compile_all", "cost", "extension", "library"]

_SOURCES = Path(__file__).parent / "native"
#: What the peers include besides: the C of the memory lock, the uAPI.
_INCLUDED = Path(__file__).parent.parent / "_cdefs"
#: Compiled peers; a guest finds them here, and has no need of a compiler.
CACHE = Path(__file__).parent.parent / ".out" / "benchmarks"
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread")


def library(name: str) -> ctypes.CDLL:
    """Load a peer, compiled if that was not done yet; calls through it release the GIL."""
    return ctypes.CDLL(str(_compiled(_SOURCES / f"{name}.c")), use_errno=True)


def cost(name: str, function: str, unit: float = 1.0) -> Callable[..., float]:
    """Give a function of a peer that returns its nanoseconds, or less than 0 with ``errno`` when it failed.

    Args:
        name: of the peer.
        function: in it.
        unit: nanoseconds of one unit of the cost: 1e6 for milliseconds.
    """
    call = getattr(library(name), function)
    call.restype = ctypes.c_double

    def measured(*arguments: object) -> float:
        ctypes.set_errno(0)
        found = float(call(*arguments))
        if found < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{function}() of {name}.c: {os.strerror(code)}")
        return found / unit

    return measured


def extension(name: str) -> Any:
    """Import a peer that is a module of Python."""
    loader = ExtensionFileLoader(name, library(name)._name)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def compile_all() -> None:
    """Compile every peer, before a guest needs them."""
    for source in sorted(_SOURCES.glob("*.c")):
        _compiled(source)


def _compiled(source: Path) -> Path:
    included = sorted([*_SOURCES.glob("*.h"), *_INCLUDED.glob("mmio/*"), *_INCLUDED.glob("uapi/*")])
    content = b"".join(path.read_bytes() for path in (source, *included)) + " ".join(_FLAGS).encode()
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
