"""The ``vfio-user`` command: one module for each subcommand."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from vfio_user.errors import VfioError

__all__ = ["main"]

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
    "guest": "guest",
    "demo": "demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    An error of this package is printed without a traceback, and gives exit code 2 (128 + 2 for an interrupt).
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    parser = argparse.ArgumentParser(prog="vfio-user", description="Userspace drivers through /dev/vfio.")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    wanted = COMMANDS.get(words[0]) if words else None
    for module in dict.fromkeys(COMMANDS.values()) if wanted is None else [wanted]:
        importlib.import_module(f"vfio_user.cli.{module}").add(subparsers)
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="vfio-user: %(message)s")
    try:
        return int(arguments.run(arguments))
    except VfioError as error:
        print(f"vfio-user: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vfio-user: interrupted", file=sys.stderr)
        return 130
