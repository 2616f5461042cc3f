"""Edit the device tree that QEMU makes for a machine: let devices be behind its IOMMU that are not on the PCI bus."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vfio_user.testing.errors import GuestSetupError

__all__ = ["edited"]

_DEADLINE = 60.0
_IOMMU = "/smmuv3@9050000"


def edited(line: Sequence[str], behind: Mapping[str, int], scratch: Path) -> Path:
    """Return a device tree in which the nodes `behind` have the machine's SMMU.

    Args:
        line: QEMU's command line: processors, memory and interrupt controller are part of the tree.
        behind: path of each node, and a stream id of its own.
        scratch: folder for the tree.

    Raises:
        GuestSetupError: QEMU gives no tree, it has other nodes, or the tools are missing.
    """
    tree = scratch / "machine.dtb"
    place = line.index("-machine") + 1
    command = [*line]
    command[place] += f",dumpdtb={str(tree).replace(',', ',,')}"
    _run(command)
    phandle = _run(["fdtget", "-t", "x", str(tree), _IOMMU, "phandle"]).strip()
    for node, stream in behind.items():
        _run(["fdtput", "-t", "x", str(tree), node, "iommus", phandle, f"{stream:x}"])
    return tree


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DEADLINE, check=False
        )
    except FileNotFoundError as error:
        raise GuestSetupError(f"{command[0]} is missing: install the package device-tree-compiler") from error
    if done.returncode:
        raise GuestSetupError(f"editing the device tree: {' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
