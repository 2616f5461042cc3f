"""The ``vfio-user`` command: one module for each subcommand."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from vfio_user.cli import demo, guest, list
from vfio_user.errors import VfioError

__all__ = ["main"]

#: Modules with ``add(subparsers)``, which sets ``run`` to a function from arguments to exit code.
COMMANDS = (list, guest, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    An error of this package is printed without a traceback, and gives exit code 2 (128 + 2 for an interrupt).
    """
    parser = argparse.ArgumentParser(prog="vfio-user", description="Userspace drivers through /dev/vfio.")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(subparsers)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="vfio-user: %(message)s")
    try:
        return int(arguments.run(arguments))
    except VfioError as error:
        print(f"vfio-user: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vfio-user: interrupted", file=sys.stderr)
        return 130
