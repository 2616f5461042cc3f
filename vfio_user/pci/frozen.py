"""Configuration space as bytes that were read before: from sysfs, without opening the device."""

from __future__ import annotations

from pathlib import Path

from vfio_user.errors import BoundsError, UnsupportedError
from vfio_user.pci.config import ConfigSpace

__all__ = ["FrozenConfig", "read_config"]

_UNPRIVILEGED = 64


class FrozenConfig(ConfigSpace):
    """A configuration space that does not change any more: it has all the readers of `ConfigSpace`, and no writer.

    Lifetime:
        Owns its bytes.
    Locking:
        None; immutable.
    """

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)

    @property
    def size(self) -> int:
        """Bytes that were read: 64 without privileges, else 256 or 4096."""
        return len(self._data)

    @property
    def whole(self) -> bool:
        """Tell whether the kernel showed more than the header."""
        return self.size > _UNPRIVILEGED

    def dump(self, size: int | None = None) -> bytes:
        """Give all of it, or the first ``size`` bytes."""
        return self._data[:size]

    def _read(self, offset: int, width: int) -> int:
        self._check(offset, width)
        return int.from_bytes(self._data[offset : offset + width], "little")

    def _write(self, offset: int, width: int, value: int) -> None:
        raise UnsupportedError("these are bytes that were read before; open the device to write")


def read_config(path: Path) -> FrozenConfig | None:
    """Read the configuration space of a function from sysfs; `None` when it can't be read.

    Raises:
        BoundsError: never for a file of the kernel: it has 64 bytes at least.
    """
    try:
        data = (path / "config").read_bytes()
    except OSError:
        return None
    if len(data) < _UNPRIVILEGED:
        raise BoundsError(f"{path}/config has {len(data)} bytes, not {_UNPRIVILEGED} at least")
    return FrozenConfig(data)
