"""The ``vfio-user`` command: one module for each subcommand."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from vfio_user.errors import VfioError

__all__ = ["build_parser", "main"]

_DESCRIPTION = """\
Drive real devices from user space, through the kernel's /dev/vfio: find them,
see what is in the way, bind them, look at them, reset them, and put them back.
"""
_EPILOG = """\
a session:
  vfio-user list                         which devices there are, and what is in the way
  vfio-user doctor 0000:03:00.0          what to do about it
  sudo vfio-user bind 03:00.0 --user me  give it to vfio-pci, and its nodes to you
  vfio-user info 03:00.0 --open          what it has: regions, interrupts, features
  vfio-user watch 03:00.0                live, while your program drives it
  vfio-user trace out.json my_driver.py  what your program does to it, for ui.perfetto.dev
  sudo vfio-user restore                 everything back to its own driver

without such a device: vfio-user demo, or vfio-user guest --device edu -- COMMAND
more on each: vfio-user COMMAND --help

exit codes: 0 done, 1 not possible or warnings, 2 an error, 3 something is in the
way (doctor), 130 interrupted; guest and trace give the command's own.
"""

#: Commands in the order of the help, and the modules that hold them. Each module has ``add(subparsers)``, which sets
#: ``run`` to a function from arguments to exit code. Only the one that is asked for is imported.
COMMANDS = {
    "list": "list",
    "info": "info",
    "tree": "tree",
    "doctor": "doctor",
    "regs": "regs",
    "bind": "bind",
    "unbind": "bind",
    "restore": "bind",
    "reset": "reset",
    "watch": "watch",
    "trace": "trace",
    "broker": "broker",
    "mdev": "mdev",
    "guest": "guest",
    "demo": "demo",
    "completion": "completion",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    An error of this package is printed without a traceback, and gives exit code 2 (128 + 2 for an interrupt).
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    parser = build_parser(words)
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="vfio-user: %(message)s")
    try:
        with _traced(arguments.trace):
            return int(arguments.run(arguments))
    except VfioError as error:
        print(f"vfio-user: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("\n".join(("vfio-user: interrupted", *getattr(interrupt, "__notes__", ()))), file=sys.stderr)
        return 130


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Make the parser: of the command that some words ask for alone, which starts faster; of all when there is none."""
    parser = argparse.ArgumentParser(
        prog="vfio-user",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="record what the command does to devices, for ui.perfetto.dev"
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    # The first word that is neither an option nor an option's value.
    pairs = zip(("", *words), words, strict=False)
    first = next((word for before, word in pairs if word[:1] != "-" and before != "--trace"), "")
    wanted = COMMANDS.get(first)
    for module in dict.fromkeys(COMMANDS.values()) if wanted is None else [wanted]:
        importlib.import_module(f"vfio_user.cli.{module}").add(subparsers)
    return parser


def _traced(path: Path | None) -> AbstractContextManager[object]:
    if path is None:
        return nullcontext()
    from vfio_user.tracing import trace

    return trace(path)
