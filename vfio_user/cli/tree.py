"""``vfio-user tree``: how functions hang together: buses, groups, what is reset together."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vfio_user.cli.console import console, note_names
from vfio_user.inventory import FunctionFacts, survey

if TYPE_CHECKING:
    from rich.tree import Tree

__all__ = ["add"]

_DESCRIPTION = """\
Draw how PCI functions hang together. By default along the buses, because a hot
reset takes everything that hangs on the same bridge; with --groups along the
groups of the IOMMU, because a group can only be used as a whole.
"""
_HARMLESS = frozenset({None, "pcieport", "pci-stub", "xen-pciback"})


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "tree",
        help="draw buses, groups, and what is reset together",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--groups", action="store_true", help="along the groups of the IOMMU")
    parser.add_argument("--json", action="store_true", help="print JSON: nested objects")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    functions = survey()
    if arguments.json:
        print(json.dumps(_groups(functions) if arguments.groups else _buses(functions, None), indent=2))
        return 0
    out = console()
    for tree in _draw_groups(functions) if arguments.groups else _draw_buses(functions):
        out.print(tree, no_wrap=True, overflow="ellipsis", crop=True)
    note_names(out)
    return 0


# -- as data


def _buses(functions: Sequence[FunctionFacts], parent: str | None) -> list[dict[str, object]]:
    return [
        {
            "address": each.address,
            "name": each.name,
            "driver": each.driver,
            "group": each.group,
            "reset_domain": list(each.reset_domain),
            "below": _buses(functions, each.address),
        }
        for each in functions
        if each.parent == parent
    ]


def _groups(functions: Sequence[FunctionFacts]) -> list[dict[str, object]]:
    return [
        {
            "group": number,
            "viable": all(each.viable for each in members),
            "iommu": members[0].iommu,
            "members": [each.address for each in members],
        }
        for number, members in _by_group(functions)
    ]


def _by_group(functions: Iterable[FunctionFacts]) -> list[tuple[int | None, list[FunctionFacts]]]:
    found: dict[int | None, list[FunctionFacts]] = {}
    for each in functions:
        found.setdefault(each.group, []).append(each)
    return sorted(found.items(), key=lambda item: (item[0] is None, item[0] or 0))


# -- as a drawing


def _draw_buses(functions: Sequence[FunctionFacts]) -> list[Tree]:
    from rich.tree import Tree

    roots: dict[str, Tree] = {}
    for each in functions:
        if each.parent is None:
            bus = each.address.rpartition(":")[0]
            root = roots.setdefault(bus, Tree(f"[bold]bus {bus}[/]", guide_style="dim"))
            _hang(root, each, functions)
    return list(roots.values())


def _hang(above: Tree, function: FunctionFacts, functions: Sequence[FunctionFacts]) -> None:
    branch = above.add(_label(function, group=True))
    below = [each for each in functions if each.parent == function.address]
    if below:
        domain = [each for each in functions if each.address in below[0].reset_domain]
        branch.label = f"{_label(function, group=True)}  {_reset_words(domain)}"
    for each in below:
        _hang(branch, each, functions)


def _reset_words(domain: Sequence[FunctionFacts]) -> str:
    foreign = [each for each in domain if each.driver is None or "vfio" not in each.driver]
    count = f"{len(domain)} function{'s' * (len(domain) != 1)}"
    if not foreign:
        return f"[green]hot reset below: {count}[/]"
    blockers = ", ".join(each.address.partition(":")[2] for each in foreign)
    return f"[dim]hot reset below: {count}, blocked by {blockers}[/]"


def _draw_groups(functions: Sequence[FunctionFacts]) -> list[Tree]:
    from rich.tree import Tree

    trees = []
    for number, members in _by_group(functions):
        by = f" [dim]{members[0].iommu}[/]" if members[0].iommu else ""
        title = f"[bold]group {number}[/]{by}" if number is not None else "[bold]no group[/]: no IOMMU translates"
        ours = [each for each in members if each.driver is not None and "vfio" in each.driver]
        if ours and number is not None and not members[0].viable:
            title += "  [red]not viable[/]"
        tree = Tree(title, guide_style="dim")
        for each in members:
            text = _label(each, group=False)
            if ours and not each.viable and each.driver not in _HARMLESS and each not in ours:
                text += "  [red]in the way[/]"
            tree.add(text)
        trees.append(tree)
    return trees


def _label(function: FunctionFacts, *, group: bool) -> str:
    from rich.markup import escape

    where = function.address.partition(":")[2] if function.address.startswith("0000:") else function.address
    name, driver = escape(function.name), function.driver or "no driver"
    number = f"  group {function.group}" if group and function.group is not None else ""
    if function.driver is not None and "vfio" in function.driver:
        return f"[green]{where}[/] {name}  [green]{driver}[/]{number}"
    return f"{where} {name}  [dim]{driver}{number}[/]"
