"""``vfio-user list``: PCI functions with their names, drivers, groups, resets and what is in the way."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vfio_user.cli.console import console, note_names
from vfio_user.inventory import Filter, FunctionFacts, describe, survey
from vfio_user.kernel import sysfs

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["add", "add_filters", "chosen", "device_table"]

#: Terminals of at least so many columns show all, or all but ways to reset.
_WIDE, _MEDIUM = 110, 84
_LEAST = 10
_WAY = "in the way"

_DESCRIPTION = """\
List the PCI functions of this machine: names, kernel driver, IOMMU group, NUMA
node, ways to reset each, and what keeps it from being bound or opened. Needs no
rights and changes nothing.
"""
_EXAMPLES = """\
examples:
  vfio-user list                      everything but bridges
  vfio-user list --class nvme         by a word of the class, or by its digits: --class 0108
  vfio-user list --id 8086: --driver none
  vfio-user list --vfio --json        what is bound to VFIO, for programs

In colour: green is bound to VFIO, red is in a group that can't be used.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "list",
        help="list PCI functions, drivers and IOMMU groups",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_filters(parser)
    parser.add_argument("--bridges", action="store_true", help="bridges too")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of objects, bridges included")
    parser.set_defaults(run=_run)


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose functions."""
    parser.add_argument("addresses", nargs="*", metavar="ADDRESS", help="PCI address: 0000:03:00.0, 03:00.0, or 03:00")
    parser.add_argument("--id", metavar="VENDOR:DEVICE", help="hexadecimal; one may be left out: 8086: or :1533")
    parser.add_argument("--class", dest="kind", metavar="CLASS", help="first digits (0108), or a word of its name")
    parser.add_argument("--driver", metavar="NAME", help="kernel driver; none for those without")
    parser.add_argument("--group", type=int, metavar="NUMBER", help="IOMMU group")
    parser.add_argument("--vfio", action="store_true", help="only those that are bound to a VFIO driver")


def chosen(arguments: argparse.Namespace) -> tuple[FunctionFacts, ...]:
    """Give the functions that the arguments of `add_filters` mean."""
    wanted = Filter(
        addresses=tuple(arguments.addresses),
        ids=arguments.id,
        kind=arguments.kind,
        driver=arguments.driver,
        group=arguments.group,
        vfio=arguments.vfio,
    )
    return wanted.apply(survey())


def _run(arguments: argparse.Namespace) -> int:
    functions = chosen(arguments)
    if arguments.json:
        print(json.dumps([each.to_json() for each in functions], indent=2))
        return 0
    bridges = arguments.bridges or bool(arguments.addresses)
    shown = [each for each in functions if bridges or not each.bridge]
    out = console()
    out.print(_table(shown, out.width) if shown else "No PCI function is like that.")
    for each in shown if out.width < _MEDIUM else ():
        if each.blockers:
            out.print(f"[dim]{each.address}:[/] {'; '.join(each.blockers)}", markup=True)
    hidden = len(functions) - len(shown)
    if hidden:
        out.print(f"[dim]{hidden} bridge{'s are' if hidden > 1 else ' is'} not shown: --bridges, or vfio-user tree[/]")
    note_names(out)
    return 0


def device_table(functions: Iterable[sysfs.PciFunction]) -> Table:
    """Make the table that ``vfio-user list`` prints, of some functions."""
    return _table([describe(each) for each in functions])


def _table(functions: Sequence[FunctionFacts], width: int = _WIDE) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = [_row(each) for each in functions]
    widths = _widths(rows, width)
    for title, columns in widths.items():
        right = title in {"group", "numa"}
        table.add_column(title, no_wrap=title != _WAY, width=columns, justify="right" if right else "left")
    for each, row in zip(functions, rows, strict=True):
        table.add_row(*(row[title] for title in widths), style=_style(each))
    return table


def _widths(rows: Sequence[dict[str, str]], width: int) -> dict[str, int]:
    """Share a terminal's width out: what matters most comes through whole, what matters least goes first."""
    longest = {title: max(len(title), *(len(row[title]) for row in rows)) for title in rows[0]}
    if all(row["numa"] == "-" for row in rows):
        del longest["numa"]
    if not any(row[_WAY] for row in rows) or width < _MEDIUM:
        del longest[_WAY]
    for title in ("reset", "id"):
        if width < (_WIDE if title == "reset" else _MEDIUM):
            del longest[title]
    left = width - sum(size + 2 for title, size in longest.items() if title not in {"name", _WAY}) - 2
    if _WAY not in longest:
        longest["name"] = max(_LEAST, min(longest["name"], left))
    elif longest["name"] + longest[_WAY] > left:
        longest["name"] = max(_LEAST, min(longest["name"], left // 2))
        longest[_WAY] = max(_LEAST, left - longest["name"])
    return longest


def _row(function: FunctionFacts) -> dict[str, str]:
    return {
        "device": function.address,
        "id": f"{function.vendor:04x}:{function.device:04x}",
        "name": function.name,
        "driver": function.driver or "-",
        "group": "-" if function.group is None else str(function.group),
        "numa": "-" if function.numa_node is None else str(function.numa_node),
        "reset": " ".join(function.reset_methods) or "-",
        _WAY: "; ".join(function.blockers),
    }


def _style(function: FunctionFacts) -> str | None:
    if function.driver is not None and "vfio" in function.driver:
        return "green" if function.viable else "red"
    return "dim" if function.bridge else None
