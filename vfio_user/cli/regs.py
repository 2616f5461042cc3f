"""``vfio-user regs``: a device's registers by name, decoded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable

from vfio_user.cli.console import console
from vfio_user.cli.progress import working
from vfio_user.inventory.readings import MapReading, driver_of, read_registers
from vfio_user.kernel import sysfs

__all__ = ["add"]

_DESCRIPTION = """\
Read a device's registers and say what their fields mean, by the register map
that its driver declares. Registers whose reading changes the device are left
out. The device is opened through VFIO, so nobody else may be using it, and the
kernel may reset it then; with --live it is read beside the process that drives
it, where the kernel allows that.
"""
_EXAMPLES = """\
examples:
  vfio-user regs 0000:01:00.0                    all registers, decoded
  vfio-user regs 01:00.0 --live                  while a driver in another process uses it (root)
  vfio-user regs 01:00.0 --driver my_pkg:MyNic   by the map of your own driver class
  vfio-user regs 01:00.0 --describe              the map itself, as Markdown; touches nothing
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "regs",
        help="read a device's registers, decoded",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="PCI address: 0000:03:00.0, or 03:00.0")
    parser.add_argument("--driver", metavar="MODULE:CLASS", help="driver class whose register maps to use")
    parser.add_argument("--live", action="store_true", help="beside the process that drives the device")
    parser.add_argument("--all", action="store_true", help="also registers whose reading changes the device")
    parser.add_argument("--describe", action="store_true", help="print the register map instead, as Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of objects, one for each register")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.describe:
        for each in driver_of(sysfs.pci_function(arguments.address), arguments.driver).register_maps:
            print(each.describe())
        return 0
    with working(f"reading {arguments.address}"):
        maps = read_registers(arguments.address, live=arguments.live, everything=arguments.all, driver=arguments.driver)
    if arguments.json:
        rows = [{"map": each.name, "bar": each.bar, **row.to_json()} for each in maps for row in each.readings]
        print(json.dumps(rows, indent=2))
    else:
        _show(maps)
    return 0


def _show(maps: Iterable[MapReading]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    for each in maps:
        table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
        for title in ("offset", "register", "value", "what it says"):
            table.add_column(title, overflow="fold", no_wrap=title != "what it says")
        for row in each.readings:
            register = row.register
            if row.value is None:
                value, text = Text("-", style="dim"), Text(row.note, style="dim")
            else:
                value, text = Text(f"{int(row.value):#0{register.width // 4 + 2}x}"), Text(row.value.text())
            table.add_row(f"{register.offset:#06x}", register.name, value, text)
        out.print(f"[bold]{each.name}[/], BAR {each.bar}")
        out.print(table)
