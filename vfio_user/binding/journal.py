"""What was changed, on disk before it is changed: one file for each device, replaced as a whole, under one lock."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vfio_user.addresses import PciAddress
from vfio_user.binding import files
from vfio_user.binding.record import Record, decode, encode
from vfio_user.errors import ArgumentError, BusyError, JournalError, VfioOSError

__all__ = ["Journal", "boot_id"]

_SUFFIX = ".json"
_LOOK = 0.02


class Journal:
    """The records of one folder.

    Lifetime:
        Nothing is open between calls, but inside of `locked`.
    Locking:
        `locked` keeps other processes and threads out; `put` and `remove` need it, reading does not.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else files.JOURNAL
        """Where the records are."""

    @contextmanager
    def locked(self, deadline: float) -> Iterator[None]:
        """Hold the journal: ``with journal.locked(deadline):``; the kernel lets go of it when the process dies.

        Args:
            deadline: on the clock of `time.monotonic`.

        Raises:
            BusyError: another process held it until then; names the process.
            JournalError: somebody else could write to the folder.
            VfioOSError: the folder can't be made or written.
        """
        self._make()
        path = self.folder / "lock"
        fd = _open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            self._acquire(fd, deadline)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            self._sweep()
            yield
        finally:
            os.close(fd)

    def get(self, address: PciAddress) -> Record | None:
        """Give the record of a device; `None` without one.

        Raises:
            JournalError: the file is not a record.
            VfioOSError: it can't be read.
        """
        path = self._path(address)
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VfioOSError(error.errno or 0, f"read {path}") from error
        record = decode(text, str(path))
        if record.address != address:
            raise JournalError(f"{path} is about {record.address}; look at it, then remove it")
        return record

    def addresses(self) -> tuple[PciAddress, ...]:
        """Give the devices that have a record, in order."""
        found = []
        with suppress(OSError):
            for name in os.listdir(self.folder):
                # What is not called like a device is not ours.
                with suppress(ArgumentError):
                    if name.endswith(_SUFFIX):
                        found.append(PciAddress.parse(name.removesuffix(_SUFFIX)))
        return tuple(sorted(found))

    def put(self, record: Record) -> None:
        """Write a record, in place of the one that its device has; it is on disk when this returns.

        Raises:
            VfioOSError: it can't be written; the old one is as it was.
        """
        path = self._path(record.address)
        part = path.with_suffix(".part")
        fd = _open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
        try:
            try:
                data = encode(record).encode()
                while data:
                    data = data[os.write(fd, data) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(part, path)
            self._sync()
        except OSError as error:
            raise VfioOSError(error.errno or 0, f"write {path}") from error

    def remove(self, address: PciAddress) -> None:
        """Forget a device.

        Raises:
            VfioOSError: its record can't be removed.
        """
        path = self._path(address)
        try:
            path.unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise VfioOSError(error.errno or 0, f"remove {path}") from error

    def _path(self, address: PciAddress) -> Path:
        return self.folder / f"{address}{_SUFFIX}"

    def _make(self) -> None:
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            status = os.stat(self.folder)
        except OSError as error:
            raise VfioOSError(error.errno or 0, f"make {self.folder}", "Binding needs root") from error
        # What stands in there is written to sysfs by root, perhaps.
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise JournalError(f"{self.folder} belongs to uid {status.st_uid}, or others may write to it: not trusted")

    def _acquire(self, fd: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise VfioOSError(error.errno or 0, f"lock {self.folder / 'lock'}") from error
            if time.monotonic() >= deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                raise BusyError(f"{self.folder} is locked by process {holder or '?'}, which is binding or restoring")
            time.sleep(_LOOK)

    def _sweep(self) -> None:
        """Remove what a process that was killed left half written."""
        for path in self.folder.glob("*.part"):
            path.unlink(missing_ok=True)

    def _sync(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def boot_id() -> str:
    """Give the id of this boot; it changes with every reboot."""
    try:
        return (files.PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        raise VfioOSError(error.errno or 0, "read the boot id", "Is /proc mounted?") from error


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise VfioOSError(error.errno or 0, f"open {path}", "Binding needs root") from error
