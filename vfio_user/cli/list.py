"""``vfio-user list``: PCI functions with their drivers, groups and nodes."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from vfio_user.cli.console import console
from vfio_user.kernel import sysfs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

__all__ = ["add", "device_table"]

_DESCRIPTION = """\
List the PCI functions of this machine: ids, kernel driver, IOMMU group, whether the group can be used, and ways to
reset it. Needs no rights and changes nothing.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "list", help="list PCI functions, drivers and IOMMU groups", description=_DESCRIPTION
    )
    parser.add_argument("--vfio", action="store_true", help="only those that are bound to a VFIO driver")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of objects")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    functions = [each for each in sysfs.pci_functions() if not arguments.vfio or each.vfio_device is not None]
    if arguments.json:
        print(json.dumps([_describe(each) for each in functions], indent=2))
    else:
        console().print(device_table(functions))
    return 0


def device_table(functions: Iterable[sysfs.PciFunction]) -> Table:
    """Make the table of functions that ``vfio-user list`` prints."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("device", "id", "class", "driver", "group", "node", "reset"):
        table.add_column(title, no_wrap=title in {"device", "id"})
    for each in functions:
        facts = _describe(each)
        bound = each.vfio_device is not None
        table.add_row(
            str(facts["address"]),
            f"{each.vendor:04x}:{each.device:04x}",
            f"{each.class_code:06x}",
            each.driver or "-",
            "-" if each.iommu_group is None else f"{each.iommu_group}{'' if facts['viable'] else ' (not viable)'}",
            str(facts["node"] or "-"),
            " ".join(each.reset_methods) or "-",
            style="green" if bound else None,
        )
    return table


def _describe(function: sysfs.PciFunction) -> dict[str, str | int | bool | list[str] | None]:
    number = function.iommu_group
    return {
        "address": str(function.address),
        "vendor": function.vendor,
        "device": function.device,
        "class": function.class_code,
        "driver": function.driver,
        "group": number,
        "viable": number is not None and not sysfs.group(number).culprits,
        "node": _node(number, function.noiommu) if function.vfio_device is not None else None,
        "numa_node": function.numa_node,
        "reset_methods": list(function.reset_methods),
    }


def _node(number: int | None, noiommu: bool) -> str | None:
    path = f"/dev/vfio/{'noiommu-' if noiommu else ''}{number}"
    return path if os.path.exists(path) else None
