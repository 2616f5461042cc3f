"""``vfio-user watch``: a device while a driver uses it, live."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vfio_user.cli.console import console
from vfio_user.cli.info import human_size
from vfio_user.errors import ArgumentError
from vfio_user.inventory.observe import Observation, observe
from vfio_user.kernel import sysfs

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

__all__ = ["add"]

_DESCRIPTION = """\
Watch a device while a driver in another process uses it: configuration and
status, interrupts of each vector, who has it open and how much memory is pinned
for it, errors, registers by name. What has changed since the last look stands
out. Reads only, and disturbs nobody.

With vfio_user.Monitor(pci) in the driver's process it also shows what only that
knows: mappings, the memory lock, resets, and registers where the kernel does not
let others read them.
"""
_EXAMPLES = """\
examples:
  vfio-user watch 0000:01:00.0                 until Ctrl-C
  vfio-user watch 01:00.0 --count 1            one look
  vfio-user watch 01:00.0 --json --interval 1  one JSON object a line, for programs
"""
_LEAST = 0.05
_COMMAND = 60


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "watch",
        help="watch a device while a driver uses it",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="PCI address: 0000:03:00.0, or 03:00.0")
    parser.add_argument("--interval", type=float, default=0.5, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many looks")
    parser.add_argument("--json", action="store_true", help="print JSON: one object for each look")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.interval < _LEAST:
        raise ArgumentError(f"an interval of {arguments.interval:g} s is too short; the least is {_LEAST:g} s")
    if arguments.count is not None and arguments.count < 1:
        raise ArgumentError("at least one look is needed: --count 1")
    looks = _looks(sysfs.pci_function(arguments.address), arguments.interval, arguments.count)
    try:
        if arguments.json:
            for seen, _ in looks:
                print(json.dumps(seen.to_json()), flush=True)
        else:
            _show(console(), looks)
    except KeyboardInterrupt:
        pass  # that is how people end it
    return 0


def _looks(
    function: sysfs.PciFunction, interval: float, count: int | None
) -> Iterator[tuple[Observation, Observation | None]]:
    """Give what each look has seen, and what the one before it had."""
    before: Observation | None = None
    done = 0
    while True:
        seen = observe(function)
        yield seen, before
        before, done = seen, done + 1
        if done == count:
            return
        time.sleep(interval)


def _show(out: Console, looks: Iterator[tuple[Observation, Observation | None]]) -> None:
    if not out.is_terminal:
        for seen, before in looks:
            out.print(_drawn(seen, before))
        return
    from rich.live import Live

    with Live(console=out, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        for seen, before in looks:
            live.update(_drawn(seen, before), refresh=True)


def _drawn(seen: Observation, before: Observation | None) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    old = dict(_rows(before)) if before is not None else {}
    for name, value in _rows(seen):
        grid.add_row(name, _marked(value, old.get(name, value)))
    parts: list[RenderableType] = [Text(seen.address, style="bold"), grid]
    if seen.registers:
        parts.append(_registers(seen, before))
    parts += [Text(f"note: {each}", style="yellow") for each in seen.notes]
    return Group(*parts)


def _marked(value: str, old: str) -> Text:
    from rich.text import Text

    return Text(value, style="bold yellow" if value != old else "")


def _rows(seen: Observation) -> Iterator[tuple[str, str]]:
    yield from seen.status.items()
    for name, count in sorted(seen.interrupts.items()):
        yield name, f"{count} interrupts"
    for each in seen.openers:
        limit = "no limit" if each.limit is None else f"limit {human_size(each.limit)}"
        yield f"process {each.pid}", f"{human_size(each.pinned)} pinned ({limit})  {_short(each.command)}"
    if seen.inside is not None:
        yield from _inside(seen.inside)


def _short(command: str) -> str:
    return command if len(command) <= _COMMAND else command[: _COMMAND - 1] + "…"


def _inside(inside: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the driver's process says of itself."""
    yield "inside of", f"the driver's process {inside.get('pid')}"
    if "error" in inside:
        yield "  error", str(inside["error"])
        return
    yield "  driver", f"{inside['driver'] or 'none'}, {inside['mode']}, {inside['health']}"
    memory = inside["memory"]
    holders = memory.get("holders", ())
    threads = ", ".join(str(each["thread"]) for each in holders)
    held = f"held by thread {threads}" if threads else "free"
    away = f" ({memory['reason']})" if memory.get("reason", "none") != "none" else ""
    yield "  memory", f"{memory['state']}{away}, lock {held}"
    yield "  resets", str(inside["resets"])
    yield "  vectors", ", ".join(f"{count} of {kind}" for kind, count in inside["vectors"].items()) or "none"
    yield "  DMA", f"{inside['mappings']} mappings, {human_size(inside['mapped_bytes'])}"
    for each in inside["dma"][:4]:
        yield f"  {each['iova']:#x}", human_size(each["size"])


def _registers(seen: Observation, before: Observation | None) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    old = {(row["map"], row["name"]): row["value"] for row in before.registers} if before is not None else {}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("register", "value", "what it says"):
        table.add_column(title, no_wrap=title != "what it says", overflow="fold")
    for row in seen.registers:
        if row["value"] is None:
            if row["note"] not in ("write-only", "reading it changes the device"):
                table.add_row(row["name"], Text("-", style="dim"), Text(row["note"], style="dim"))
            continue
        value = f"{row['value']:#0{row['width'] // 4 + 2}x}"
        changed = old.get((row["map"], row["name"]), row["value"]) != row["value"]
        table.add_row(row["name"], Text(value, style="bold yellow" if changed else ""), row["text"])
    return table
