"""``vfio-user info``: everything about one device."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfio_user.cli.console import console, note_names
from vfio_user.cli.progress import working
from vfio_user.inventory import Details, FunctionFacts, inspect

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["add", "human_size"]

_DESCRIPTION = """\
Say everything about one device: what it is, its BARs, its capabilities decoded,
its group, what is reset together with it. With --open, the device is opened
through VFIO for its regions, interrupts, features and the IOVAs that it reaches;
the kernel may reset a device when it is opened and when it is closed.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "info",
        help="say everything about one device",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="PCI address: 0000:03:00.0, or 03:00.0")
    parser.add_argument("--open", action="store_true", help="open it through VFIO, for what only the device can tell")
    parser.add_argument("--json", action="store_true", help="print JSON: one object")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with working(f"looking at {arguments.address}"):
        details = inspect(arguments.address, open=arguments.open)
    if arguments.json:
        print(json.dumps(details.to_json(), indent=2))
        return 0
    out = console()
    facts = details.facts
    out.print(f"[bold]{facts.address}[/]  {facts.name}")
    out.print(_grid(_rows(details)))
    _sections(out, details)
    for line in details.hidden:
        out.print(f"[yellow]hidden:[/] {line}")
    note_names(out)
    return 0


def human_size(size: int) -> str:
    """Write a size in bytes with the largest unit that divides it: ``"16 KiB"``."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def _rows(details: Details) -> Iterator[tuple[str, str]]:
    facts = details.facts
    yield "ids", _ids(facts)
    yield "class", f"{facts.class_code:06x}" + (f" {facts.class_name}" if facts.class_name else "")
    yield "driver", facts.driver or "none"
    if facts.group is None:
        yield "group", "none: no IOMMU translates for it"
    else:
        by = f", by {facts.iommu}" if facts.iommu else ""
        yield "group", f"{facts.group}{by}{'' if facts.viable else ' (not viable)'}"
    if facts.nodes:
        yield "nodes", " ".join(facts.nodes)
    if facts.numa_node is not None:
        yield "NUMA node", str(facts.numa_node)
    if details.power:
        yield "power", details.power
    if facts.physical_function:
        yield "belongs to", facts.physical_function
    if facts.virtual_functions is not None:
        yield "virtual", f"{facts.virtual_functions} functions are on"
    yield "reset", " ".join(facts.reset_methods) or "no way to reset it alone"
    others = [each for each in facts.reset_domain if each != facts.address]
    if facts.parent and not facts.physical_function:
        yield "hot reset", f"takes with it: {' '.join(others)}" if others else "takes nothing else with it"
    else:
        yield "hot reset", "none: nothing above it could reset it"
    for blocker in facts.blockers:
        yield "in the way", blocker
    if details.mode:
        yield "opened", f"as {details.mode}"
        yield "IOVAs", "  ".join(details.iova_ranges) or "none: nothing is translated"
        if details.page_sizes:
            yield "page sizes", " ".join(human_size(size) for size in details.page_sizes)
        yield "features", ", ".join(details.features) or "none beyond the usual"
    for first, last, kind in details.reserved:
        yield "reserved", f"{first}..{last} {kind}"


def _ids(facts: FunctionFacts) -> str:
    text = f"{facts.vendor:04x}:{facts.device:04x}"
    if facts.subsystem_vendor is not None and facts.subsystem_device is not None:
        text += f", board {facts.subsystem_vendor:04x}:{facts.subsystem_device:04x}"
    return text if facts.revision is None else f"{text}, revision {facts.revision:02x}"


def _sections(out: Console, details: Details) -> None:
    if details.regions:
        table = _table("region", "size", "flags", "mapped")
        for region in details.regions:
            areas = " ".join(f"{offset:#x}+{size:#x}" for offset, size in region.mapped)
            table.add_row(region.name, human_size(region.size), " ".join(region.flags), areas or "-")
        out.print(table)
    elif details.facts.bars:
        table = _table("BAR", "size", "kind", "at")
        for bar in details.facts.bars:
            table.add_row(
                "ROM" if bar.number == 6 else str(bar.number), human_size(bar.size), bar.kind, f"{bar.address:#x}"
            )
        out.print(table)
    if details.irqs:
        table = _table("interrupts", "vectors", "flags")
        for irq in details.irqs:
            table.add_row(irq.name, str(irq.count), " ".join(irq.flags))
        out.print(table)
    if details.capabilities:
        table = _table("capability", "at", "what it says")
        for each in details.capabilities:
            table.add_row(each.name, f"{each.offset:#x}", str(each))
        out.print(table)


def _grid(rows: Iterator[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value, style="red" if name == "in the way" else ""))
    return grid


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title in {"region", "size", "BAR", "capability", "at"})
    return table
