"""Do something as a user who has no privilege at all, in a process of its own."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

USER, GROUP, MEMLOCK = 1234, 1235, 8 << 20


class Unprivileged:
    """A child that runs as `USER`, without any capability, with a limit of locked memory.

    Its work is given a function that says that it is ready for what the test does next.
    """

    def __init__(
        self, work: Callable[[Callable[[], None]], None], *, memlock: int = MEMLOCK, groups: tuple[int, ...] = ()
    ) -> None:
        self._ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                _drop(memlock, groups)
                work(lambda: void(os.write(told, b".")))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(told)

    def wait_until_ready(self) -> None:
        """Wait for its word, or its end."""
        assert os.read(self._ready, 1) == b".", "it ended before that"

    def wait(self) -> int:
        """Wait for its end and give its exit code."""
        os.close(self._ready)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


def void(_: object) -> None:
    """Give nothing back."""


def _drop(memlock: int, groups: tuple[int, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
    os.setgroups(groups)
    os.setresgid(GROUP, GROUP, GROUP)
    os.setresuid(USER, USER, USER)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
