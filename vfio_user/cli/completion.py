"""``vfio-user completion``: what makes a shell complete commands, options and PCI addresses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from vfio_user.errors import UnsupportedError

__all__ = ["add"]

_DESCRIPTION = """\
Print what makes a shell complete this tool's commands, options and addresses.
"""
_EXAMPLES = """\
examples:
  eval "$(vfio-user completion bash)"                                  in ~/.bashrc
  vfio-user completion zsh > "${fpath[1]}/_vfio-user"                  and start a new shell
  vfio-user completion tcsh > ~/.vfio-user.tcsh                        and source it in ~/.tcshrc
"""
_SHELLS = ("bash", "zsh", "tcsh")
# A colon ends a word in bash, in the middle of an address, unless it is told otherwise.
_PREAMBLE = {
    "bash": """\
COMP_WORDBREAKS=${COMP_WORDBREAKS//:}
_vfio_user_addresses() {
  compgen -W "$(command ls /sys/bus/pci/devices 2>/dev/null)" -- "$1"
}
""",
    "zsh": """\
_vfio_user_addresses() {
  compadd -- /sys/bus/pci/devices/*(N:t)
}
""",
}
_ADDRESSES = {
    "bash": "_vfio_user_addresses",
    "zsh": "_vfio_user_addresses",
    "tcsh": "`ls /sys/bus/pci/devices`",
}


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "completion",
        help="make a shell complete this tool's words",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=_SHELLS, help="which one")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise UnsupportedError("completion needs the package shtab: pip install 'vfio_user[cli]'") from None
    from vfio_user.cli import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if action.metavar == "ADDRESS":
            action.complete = _ADDRESSES  # type: ignore[attr-defined]  # this is how shtab is told
    sys.stdout.write(shtab.complete(parser, arguments.shell, preamble=_PREAMBLE.get(arguments.shell, "")))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
