"""The terminal, by rich; and a clear word when rich is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.errors import UnsupportedError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console"]


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
    return Console(highlight=False)
