"""``vfio-user trace``: run a Python program and record what it does to its devices."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from vfio_user.errors import ArgumentError
from vfio_user.tracing import trace

__all__ = ["add"]

_DESCRIPTION = """\
Run a Python program, as "python PROGRAM ..." does, and record what it does to its
devices: requests to the kernel with their arguments and errno, register accesses,
configuration space, interrupts, mapped memory, and the phases of resets. Open the
file with ui.perfetto.dev or Chrome's about://tracing.
"""
_EXAMPLES = """\
examples:
  vfio-user trace edu.json examples/edu_factorial.py 0000:01:00.0
  vfio-user trace nvme.json -m my_package.tool --fast

To trace another command of this tool: vfio-user --trace reset.json reset 01:00.0
In a program: with vfio_user.trace("edu.json"): ...
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "trace",
        help="record what a Python program does to its devices",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="where to write the trace (JSON)")
    parser.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="PROGRAM [ARGUMENT ...]",
        help="a Python file, or -m and a module; the rest is its arguments",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.program
    module = words[:1] == ["-m"]
    words = words[1:] if module else words
    if not words:
        raise ArgumentError("no program to trace: give a Python file, or -m and a module")
    if not module and not Path(words[0]).is_file():
        raise ArgumentError(f"there is no file {words[0]}")
    before = sys.argv, sys.path[:]
    sys.argv = words
    sys.path[0:0] = [""] if module else [str(Path(words[0]).resolve().parent)]
    recorded = trace(arguments.file)
    try:
        with recorded:
            return _code(words[0], module)
    finally:
        sys.argv, sys.path[:] = before
        lost = f"; {recorded.lost} register accesses came too fast and are not in it" if recorded.lost else ""
        print(f"vfio-user: {arguments.file} is written: open it with ui.perfetto.dev{lost}", file=sys.stderr)


def _code(name: str, module: bool) -> int:
    """Run a program; give its exit code."""
    try:
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as done:
        if done.code is None or isinstance(done.code, int):
            return done.code or 0
        print(done.code, file=sys.stderr)
        return 1
    return 0
