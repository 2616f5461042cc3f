"""``vfio-user doctor``: what is in the way, and what mends it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap

from vfio_user.doctor import Diagnosis, Finding, Severity, explain

__all__ = ["add"]

_DESCRIPTION = """\
Look at this machine, and at the devices that are named, and say what is in the
way of driving them from user space: what it is, why it matters, and the command
that mends it. Needs no rights, opens nothing and changes nothing.
"""
_EXAMPLES = """\
examples:
  vfio-user doctor                  the machine: IOMMU, modules, limits
  vfio-user doctor 0000:03:00.0     and this device: driver, group, nodes, resets

exit code: 0 when all is well (notes do not count), 1 with warnings, 3 when
something is in the way, 2 when the doctor itself failed.
"""
_EXIT_CODES = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 3}
_COLOURS = {Severity.OK: "32", Severity.NOTE: "36", Severity.WARNING: "33;1", Severity.ERROR: "31;1"}
_TAG = 9
_WIDEST = 100


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what is in the way, and what mends it",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("addresses", nargs="*", metavar="ADDRESS", help="PCI address: 0000:03:00.0, or 03:00.0")
    parser.add_argument("--quiet", action="store_true", help="leave out what is as it should be")
    parser.add_argument("--json", action="store_true", help="print JSON: severity, ready, findings")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    diagnosis = explain(*arguments.addresses)
    if arguments.json:
        print(json.dumps(diagnosis.to_json(), indent=2))
    else:
        _show(diagnosis, quiet=arguments.quiet)
    return _EXIT_CODES[diagnosis.severity]


def _show(diagnosis: Diagnosis, *, quiet: bool) -> None:
    # Not by rich: this is the command that people run where nothing works yet.
    colour = sys.stdout.isatty()
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for each in diagnosis:
        if each.severity or not quiet:
            print(_paragraph(each, width, colour=colour))
    worst = [each for each in diagnosis if each.severity is diagnosis.severity]
    if diagnosis.ready:
        print(
            "\nNothing is in the way."
            if diagnosis.severity < Severity.WARNING
            else "\nNothing is in the way, but see above."
        )
    else:
        print(f"\n{len(worst)} thing{'s are' * (len(worst) > 1) or ' is'} in the way.")


def _paragraph(finding: Finding, width: int, *, colour: bool) -> str:
    tag = finding.severity.name.lower().ljust(_TAG)
    if colour:
        tag = f"\x1b[{_COLOURS[finding.severity]}m{tag}\x1b[0m"
    indent = " " * _TAG
    lines = _wrapped(finding.what, width, indent)
    lines += _wrapped(finding.why, width, indent)
    lines += _wrapped(f"-> {finding.remedy}", width, indent) if finding.remedy else []
    # A command stays in one piece, to be copied.
    lines += [f"{indent}   $ {finding.command}"] if finding.command else []
    return tag + "\n".join(lines)[_TAG:]


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
