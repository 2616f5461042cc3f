"""Say what is going on when it takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["working"]

_QUIET = 1.0
_STEP = 0.2


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show ``what`` and the seconds that it takes, on a terminal, until the ``with`` block ends.

    Nothing is shown for what is done within a second, or where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(what, done), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(what: str, done: threading.Event) -> None:
    begin = time.monotonic()
    if done.wait(_QUIET):
        return
    while not done.wait(_STEP):
        print(f"\r{what}: {time.monotonic() - begin:.0f} s (Ctrl-C ends it)", end="\x1b[K", file=sys.stderr, flush=True)
    print("\r", end="\x1b[K", file=sys.stderr, flush=True)
