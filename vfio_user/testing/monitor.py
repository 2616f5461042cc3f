"""QEMU's monitor, from the runner and from inside of the guest.

The runner speaks QMP through the ``qemu.qmp`` package (extra ``guest``). A program in the guest asks through
files: it leaves ``N.request`` in a folder of the output share, the runner answers with ``N.answer``; both are
    JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vfio_user.errors import DeadlineError
from vfio_user.testing.errors import GuestError, GuestSetupError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

__all__ = ["Monitor", "MonitorError", "Requests", "ask"]

_POLL = 0.05  # seconds between looks for an answer


class MonitorError(GuestError):
    """Report a command that QEMU's monitor refused; the message is QEMU's."""


class Monitor:
    """A connection to QEMU's QMP socket, made at the first command.

    Lifetime:
        close it (it is a context manager) before QEMU's socket is removed.

    Locking:
        none; use it in one thread, outside of a running event loop.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: QMPClient | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = 30.0) -> object:
        """Run one QMP command and return what QEMU returns.

        Args:
            command: ``"query-status"``, ``"device_del"``, …
            arguments: the command's arguments.
            timeout: seconds.

        Raises:
            MonitorError: QEMU refused it.
            GuestSetupError: the package ``qemu.qmp`` is missing.
            DeadlineError: no answer in time.
        """
        try:
            from qemu.qmp import ExecuteError, QMPError
        except ImportError as error:
            raise GuestSetupError("the monitor needs the package qemu.qmp: pip install 'vfio_user[guest]'") from error
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            return self._loop.run_until_complete(
                asyncio.wait_for(self._execute(command, dict(arguments or {})), timeout)
            )
        except ExecuteError as error:
            raise MonitorError(f"{command}: {error}") from error
        except TimeoutError as error:
            raise DeadlineError(f"QEMU did not answer {command} within {timeout} s") from error
        except (QMPError, OSError) as error:
            raise MonitorError(f"{command}: no connection to QEMU: {error}") from error

    def human(self, line: str) -> str:
        """Run one command of the human monitor, such as ``"info pci"``, and return what it prints."""
        return str(self.execute("human-monitor-command", {"command-line": line}))

    async def _execute(self, command: str, arguments: dict[str, object]) -> object:
        from qemu.qmp import QMPClient

        if self._client is None:
            client = QMPClient("vfio-user")
            await client.connect(str(self._socket))
            self._client = client
        return await self._client.execute(command, arguments)

    def close(self) -> None:
        """Leave the monitor; QEMU goes on."""
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        client, self._client = self._client, None
        try:
            if client is not None:
                loop.run_until_complete(asyncio.wait_for(client.disconnect(), 5.0))
        except Exception:
            pass
        finally:
            loop.close()


class Requests:
    """The runner's side of the channel: answers what programs in the guest ask."""

    def __init__(self, folder: Path, monitor: Monitor) -> None:
        self._folder = folder
        self._monitor = monitor

    def answer(self) -> int:
        """Answer all requests that are there, in their order; return their number."""
        requests = sorted(self._folder.glob("*.request"))
        for path in requests:
            answer = path.with_suffix(".answer")
            part = path.with_suffix(".part")
            part.write_text(json.dumps(self._answer_one(path)))
            path.unlink()
            part.rename(answer)
        return len(requests)

    def _answer_one(self, path: Path) -> dict[str, object]:
        try:
            request = json.loads(path.read_text())
            return {"return": self._monitor.execute(request["execute"], request.get("arguments"))}
        except (GuestError, DeadlineError) as error:
            return {"error": str(error)}
        except (ValueError, TypeError, KeyError) as error:
            return {"error": f"not a request: {error!r}"}


def ask(folder: Path, command: str, arguments: Mapping[str, object] | None, timeout: float) -> object:
    """Ask the runner, from inside of the guest, to run a QMP command; return what QEMU returns.

    Raises:
        MonitorError: QEMU refused it.
        DeadlineError: no answer in time.
    """
    name = f"{time.monotonic_ns():020d}-{os.getpid()}"
    part, answer = folder / f"{name}.part", folder / f"{name}.answer"
    part.write_text(json.dumps({"execute": command, "arguments": dict(arguments or {})}))
    part.rename(folder / f"{name}.request")
    deadline = time.monotonic() + timeout
    while not answer.exists():
        if time.monotonic() > deadline:
            raise DeadlineError(f"the guest's runner did not answer {command} within {timeout} s")
        time.sleep(_POLL)
    reply = json.loads(answer.read_text())
    answer.unlink()
    if "error" in reply:
        raise MonitorError(reply["error"])
    return reply["return"]
