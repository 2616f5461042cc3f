"""``vfio-user mdev``: mediated devices that there are and that can be made; make and remove them."""

from __future__ import annotations

import argparse
import json

from vfio_user.cli.console import console
from vfio_user.mdev import Mdev, MdevType, mdev, mdev_parent, mdev_parents

__all__ = ["add"]

_DESCRIPTION = """\
List the mediated devices of this machine, and the types of which more can be
made; make one, or remove some. Making and removing needs root.
"""
_EXAMPLES = """\
examples:
  vfio-user mdev                                   parents, types, instances
  vfio-user mdev create mtty mtty-2                prints the UUID of what it made
  vfio-user mdev create 0.0.0001 vfio_ccw-io --uuid 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
  vfio-user mdev remove 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "mdev",
        help="list, make and remove mediated devices",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list of types, with their instances")
    parser.set_defaults(run=_list)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    create = verbs.add_parser("create", help="make an instance, and print its UUID")
    create.add_argument("parent", help="the device to make it of: mtty, 0000:00:02.0, 0.0.0001")
    create.add_argument("type", help="one of its types")
    create.add_argument("--uuid", help="its name; by default a random one")
    create.set_defaults(run=_create)
    remove = verbs.add_parser("remove", help="remove instances")
    remove.add_argument("uuid", nargs="+")
    remove.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for whoever has it open")
    remove.set_defaults(run=_remove)


def _list(arguments: argparse.Namespace) -> int:
    types = [each for parent in mdev_parents() for each in parent.types]
    if arguments.json:
        print(json.dumps([_facts(each) for each in types], indent=2))
        return 0
    out = console()
    if not types:
        out.print("No device of this machine offers mediated devices, or its driver is not loaded.")
        return 0
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("parent", "type", "api", "more", "what it is"):
        table.add_column(title, justify="right" if title == "more" else "left")
    for each in types:
        table.add_row(each.parent.name, each.name, each.device_api, str(each.available), each.title)
        for made in each.mdevs:
            table.add_row("", f"  {made}", "", "", f"group {_group(made)}", style="green")
    out.print(table)
    return 0


def _facts(kind: MdevType) -> dict[str, object]:
    return {
        "parent": kind.parent.name,
        "type": kind.name,
        "title": kind.title,
        "description": kind.description,
        "device_api": kind.device_api,
        "available": kind.available,
        "mdevs": [{"uuid": made.name, "group": made.iommu_group, "cdev": made.cdev} for made in kind.mdevs],
    }


def _group(made: Mdev) -> str:
    number = made.iommu_group
    return "none" if number is None else str(number)


def _create(arguments: argparse.Namespace) -> int:
    print(mdev_parent(arguments.parent).type(arguments.type).create(arguments.uuid))
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    for found in [mdev(each) for each in arguments.uuid]:
        found.remove(arguments.timeout)
    return 0
