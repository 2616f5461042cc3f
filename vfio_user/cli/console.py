"""The terminal, by rich; and a clear word when rich is not installed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vfio_user.errors import UnsupportedError
from vfio_user.pci.names import load_names

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "note_names"]

_WIDE = 200


def console() -> Console:
    """Give the console that commands print tables and progress to.

    Raises:
        UnsupportedError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError:
        raise UnsupportedError(
            "this command prints with rich: pip install 'vfio_user[cli]', or ask for --json"
        ) from None
    # What goes to a file or through a pipe is cut to nobody's width.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(highlight=False, width=width, markup=True)


def note_names(out: Console) -> None:
    """Say where names come from, when there are none."""
    if not load_names().source:
        out.print("[dim]No names: install the package pci.ids (Debian) or hwdata (Fedora, Arch).[/]")
