"""Layers: an import points downwards only, so that each layer can be understood by itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "vfio_user"

#: From the top down; what stands in one row are siblings, which do not know each other.
LAYERS = (
    ("cli",),
    ("testing",),
    ("doctor", "inventory", "handover"),
    ("buses",),
    ("session", "binding", "monitor"),
    ("drivers",),
    ("ccw", "ap"),
    ("mdev",),
    ("pci", "platform", "fsl_mc", "cdx"),
    ("device",),
    ("memory", "iommu"),
    ("findings", "tracing"),
    ("kernel",),
    ("_uapi", "_mmio", "errors", "addresses"),
)
RANKS = {name: rank for rank, row in enumerate(LAYERS) for name in row}
BOTTOM = len(LAYERS) - 1
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def layer_of(module: str) -> str | None:
    """Give the layer of a module by its full name; `None` for the package's own face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Give line and module of every import that happens at run time, in functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from imports(branch)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            assert node.module is not None
            if node.module == "vfio_user":
                yield from ((node.lineno, f"vfio_user.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module
        else:
            yield from imports(node)


def violations(layer: str, text: str) -> list[str]:
    found = []
    for line, module in imports(ast.parse(text)):
        if not module.startswith("vfio_user."):
            continue
        target = layer_of(module)
        # `from vfio_user import name` outside of the layers: the package's face, for the layers above it.
        if target not in RANKS:
            target = "session"
        upwards = RANKS[target] < RANKS[layer]
        sideways = RANKS[target] == RANKS[layer] != BOTTOM and target != layer
        if upwards or sideways:
            found.append(f"line {line}: {layer} imports {module}, which is {'above' if upwards else 'beside'} it")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path: Path) -> None:
    name = path.parts[0].removesuffix(".py")
    if name == "__init__":
        return  # the package's face names what is below
    assert name in RANKS, f"{name} is in no layer: say here where it belongs"
    assert violations(name, (PACKAGE / path).read_text()) == []


def test_what_this_test_sees() -> None:
    text = """
from typing import TYPE_CHECKING
from vfio_user.pci import PciDevice
from vfio_user import memory
import vfio_user.device.base
from vfio_user import open
from vfio_user.kernel.fd import OwnedFd
from vfio_user.iommu.iova import IovaAllocator
if TYPE_CHECKING:
    from vfio_user.session import Devices
def late():
    from vfio_user.drivers import Driver
"""
    assert violations("iommu", text) == [
        "line 3: iommu imports vfio_user.pci, which is above it",
        "line 4: iommu imports vfio_user.memory, which is beside it",
        "line 5: iommu imports vfio_user.device.base, which is above it",
        "line 6: iommu imports vfio_user.open, which is above it",
        "line 12: iommu imports vfio_user.drivers, which is above it",
    ]


@pytest.mark.parametrize("folder", ["examples"])
def test_examples_use_public_names_only(folder: str) -> None:
    scripts = sorted((PACKAGE.parent / folder).rglob("*.py"))
    assert scripts
    for script in scripts:
        for line, module in imports(ast.parse(script.read_text())):
            assert not any(part.startswith("_") and part != "__future__" for part in module.split(".")), (script, line)
