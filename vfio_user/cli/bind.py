"""``vfio-user bind``, ``unbind`` and ``restore``: give devices to vfio-pci, and put them back."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from vfio_user import binding
from vfio_user.cli.progress import working

__all__ = ["add"]

_BIND = """\
Give PCI devices to vfio-pci, so that user space may drive them. All or none:
when a step fails, what was done is undone. What each device was (driver,
override, virtual functions, owner of its nodes) is on disk before anything
changes, so that "vfio-user restore" puts it back, also after a crash of this
command or of whatever used the device.

A device that is in use is refused: a mounted disk, a network interface that is
up, the display or console that the machine booted with, a bridge, virtual
functions that are switched on.
"""
_BIND_EXAMPLES = """\
examples:
  vfio-user bind 0000:03:00.0                      for root
  vfio-user bind 03:00.0 --user alice              for alice, who then needs no privilege
  vfio-user bind 03:00.0 --siblings                with the other devices of its IOMMU group
  vfio-user bind 03:00.0 --force-in-use interface  although its network interface is up

next: vfio-user doctor 0000:03:00.0 says whether everything is ready; vfio-user restore puts everything back.
"""
_UNBIND = """\
Take PCI devices from their drivers and leave them without one. A group of the
IOMMU can be used when each of its devices is bound to vfio-pci or to no driver:
this is for those that nobody is to use. "vfio-user restore" puts them back.
"""
_RESTORE = """\
Put devices back to what they were before "vfio-user bind" or "unbind": all that
are recorded, or those that are named. Safe to run at any time, and after a crash
at any point. Devices that were unplugged, replaced, or bound by somebody else
since are left alone. After a reboot there is nothing to do: the kernel has chosen
anew.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the arguments of the three commands."""
    bind = _parser(subparsers, "bind", "give devices to vfio-pci", _BIND, _BIND_EXAMPLES)
    bind.add_argument("addresses", nargs="+", metavar="ADDRESS", help="PCI address: 0000:03:00.0, or 03:00.0")
    bind.add_argument("--driver", default="vfio-pci", metavar="NAME", help="another driver (default: %(default)s)")
    bind.add_argument("--siblings", action="store_true", help="also the other devices of their IOMMU groups")
    bind.add_argument("--user", metavar="USER", help="hand the nodes to this user (name or number)")
    bind.add_argument("--group", metavar="GROUP", help="let this group open the nodes (name or number)")
    bind.set_defaults(run=_bind)
    unbind = _parser(subparsers, "unbind", "leave devices without a driver", _UNBIND)
    unbind.add_argument("addresses", nargs="+", metavar="ADDRESS", help="PCI address")
    unbind.set_defaults(run=_unbind)
    restore = _parser(subparsers, "restore", "put devices back to what they were", _RESTORE)
    restore.add_argument("addresses", nargs="*", metavar="ADDRESS", help="PCI address; all by default")
    restore.add_argument("--list", action="store_true", help="show what is recorded, and change nothing")
    restore.set_defaults(run=_restore)


def _parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, line: str, text: str, more: str = ""
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name, help=line, description=text, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--force-in-use",
        action="append",
        default=[],
        choices=[kind.value for kind in binding.UseKind],
        metavar="KIND",
        help=f"do it although the device is in use in this way ({', '.join(kind.value for kind in binding.UseKind)})",
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="for all of it (default: %(default)g)"
    )
    parser.add_argument(
        "--journal", type=Path, metavar="FOLDER", help="where records are (default: /run/vfio-user/journal)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list of objects")
    return parser


def _bind(arguments: argparse.Namespace) -> int:
    with working("binding"):
        done = binding.bind(
            *arguments.addresses,
            driver=arguments.driver,
            siblings=arguments.siblings,
            user=arguments.user,
            group=arguments.group,
            force_in_use=arguments.force_in_use,
            timeout=arguments.timeout,
            journal=arguments.journal,
        )
    _show(done, as_json=arguments.json)
    return 0


def _unbind(arguments: argparse.Namespace) -> int:
    with working("unbinding"):
        done = binding.unbind(
            *arguments.addresses,
            force_in_use=arguments.force_in_use,
            timeout=arguments.timeout,
            journal=arguments.journal,
        )
    _show(done, as_json=arguments.json)
    return 0


def _show(done: Iterable[binding.Binding], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"address": str(each.address), "driver": each.driver, "before": each.before, "nodes": list(each.nodes)}
            for each in done
        ]
        print(json.dumps(rows, indent=2))
        return
    for each in done:
        nodes = f": {' '.join(each.nodes)}" if each.nodes else ""
        now = f"is bound to {each.driver}" if each.driver is not None else "has no driver"
        was = "as before" if each.driver == each.before else f"was: {each.before or 'none'}"
        print(f"{each.address} {now} ({was}){nodes}")
        for culprit in each.culprits:
            if each.nodes:
                print(
                    f"  its group can't be used yet: {culprit.address} is bound to {culprit.driver}; "
                    f"vfio-user bind {culprit.address}, or unbind, or bind with --siblings"
                )


def _restore(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list(arguments)
    with working("putting devices back"):
        done = binding.restore(
            *arguments.addresses,
            force_in_use=arguments.force_in_use,
            timeout=arguments.timeout,
            journal=arguments.journal,
        )
    if arguments.json:
        rows = [
            {"address": str(each.address), "found": each.fate.value, "driver": each.driver, "note": each.note}
            for each in done
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for each in done:
        print(f"{each.address} {each.note}")
    if not done:
        print("nothing is recorded, so there is nothing to put back")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found = binding.records(journal=arguments.journal)
    if arguments.json:
        rows = [
            {
                "address": str(each.address),
                "driver": each.driver,
                "before": each.before.driver,
                "complete": each.complete,
            }
            for each in found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for each in found:
        state = "" if each.complete else "  (interrupted half-way)"
        print(f"{each.address} {each.before.driver or 'no driver'} -> {each.driver or 'no driver'}{state}")
    if not found:
        print("nothing is recorded")
    return 0
