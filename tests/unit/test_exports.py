"""Public names: listed, sorted, and each with words of its own."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from enum import Enum
from types import ModuleType

import pytest

import vfio_user

BELOW = [each.name for each in pkgutil.walk_packages(vfio_user.__path__, "vfio_user.")]
MODULES = ["vfio_user", *(name for name in sorted(BELOW) if not any(part[0] == "_" for part in name.split(".")))]


def as_ruff_sorts(name: str) -> tuple[int, list[tuple[int, int | str]]]:
    """Constants, then classes, then the rest; numbers within a name count as numbers."""
    rank = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return rank, [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def members(owner: type) -> Iterator[tuple[str, object]]:
    """Give what a class itself adds to its public face: functions and properties."""
    for name, value in vars(owner).items():
        inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if not name.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
            yield name, inner


def own(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Give what a module defines itself and lists as public."""
    for name in module.__all__:
        value = getattr(module, name)
        if getattr(value, "__module__", None) == module.__name__:
            yield name, value


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_module_says_what_it_is(module: ModuleType) -> None:
    assert module.__doc__
    assert module.__doc__.strip().splitlines()[0].endswith((".", ":"))


def test_all_is_sorted_and_true(module: ModuleType) -> None:
    listed = getattr(module, "__all__", [])
    assert list(listed) == sorted(listed, key=as_ruff_sorts)
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert hasattr(module, name), f"{name} is listed and missing"


def test_public_functions_and_classes_are_listed(module: ModuleType) -> None:
    defined = {name for name, value in vars(module).items() if not name.startswith("_") and _defined(module, value)}
    assert defined <= set(getattr(module, "__all__", ())), "public by name, but not listed"


def test_everything_public_is_described(module: ModuleType) -> None:
    missing = []
    for name, value in own(module) if hasattr(module, "__all__") else ():
        if inspect.isfunction(value) and not value.__doc__:
            missing.append(name)
        if inspect.isclass(value):
            if not _described(value):
                missing.append(name)
            for inner, member in members(value):
                if not inspect.getdoc(member) and not inspect.getdoc(getattr(value, inner)):
                    missing.append(f"{name}.{inner}")
    assert missing == []


def _defined(module: ModuleType, value: object) -> bool:
    return (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__


def _described(kind: type) -> bool:
    doc = kind.__doc__ or ""
    # A dataclass without words of its own is described by its signature, an enumeration by its base.
    generated = doc.startswith(f"{kind.__name__}(")
    inherited = issubclass(kind, Enum) and doc == Enum.__doc__
    return bool(doc) and not generated and not inherited


def test_face_of_the_package_is_small() -> None:
    assert {"open", "PciDevice", "AddressSpace", "VfioError"} <= set(vfio_user.__all__)
    for name in vfio_user.__all__:
        assert not name.startswith("_")
        assert not inspect.ismodule(getattr(vfio_user, name)), f"{name} is a module"
