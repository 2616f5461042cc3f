"""Run a piece of a test in a forked child."""

from __future__ import annotations

import os
import select
import traceback
from collections.abc import Callable


def in_child(function: Callable[[], object], timeout: float = 20.0) -> str:
    """Give ``repr`` of what the function returns in a forked child, or the traceback of what it raises."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = repr(function())
        except BaseException:
            text = traceback.format_exc()
        os.write(sender, text.encode()[:4096])
        os._exit(0)
    os.close(sender)
    try:
        assert select.select([receiver], [], [], timeout)[0], "the child does not answer"
        return os.read(receiver, 4096).decode()
    finally:
        os.close(receiver)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the child ended with status {status}"
