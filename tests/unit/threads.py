"""Run pieces of a test in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future


def start(function: Callable[[], object]) -> Future[object]:
    """Run a function in a thread; what it returns or raises is in the future."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def run_together(*functions: Callable[[], object], timeout: float = 30.0) -> list[BaseException]:
    """Run functions in threads that begin at the same time; give what they raised."""
    barrier = threading.Barrier(len(functions))

    def behind_barrier(function: Callable[[], object]) -> object:
        barrier.wait(timeout)
        return function()

    futures = [start(lambda function=function: behind_barrier(function)) for function in functions]  # type: ignore[misc]
    return [error for future in futures if (error := future.exception(timeout)) is not None]


def eventually(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
    """Wait until a condition holds; give whether it did."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)
    return True
