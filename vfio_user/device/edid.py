"""The monitor of a virtual display: the region through which its description (EDID) is set."""

from __future__ import annotations

import sys

from vfio_user._uapi import ffi
from vfio_user.device.region import Region
from vfio_user.errors import ArgumentError, BoundsError, MalformedReplyError
from vfio_user.kernel.uapi import GfxLinkState

__all__ = ["EdidRegion"]

_BLOCK = 128
_WIDTH = 4  # bytes of each of its fields
_MAGIC = bytes.fromhex("00ffffffffffff00")
_CTYPE = "struct vfio_region_gfx_edid"


class EdidRegion:
    """The monitor that a virtual display sees: a region of type `RegionType.GFX`, subtype EDID.

    Source: ``struct vfio_region_gfx_edid`` in ``linux/vfio.h``.

    Lifetime:
        Lives as long as its device.
    Locking:
        One thread at a time.
    """

    def __init__(self, region: Region) -> None:
        """Give a face to the region.

        Raises:
            MalformedReplyError: what the region says of itself does not fit it.
        """
        self.region = region
        """The region."""
        if region.size < ffi.sizeof(_CTYPE):
            raise MalformedReplyError(f"{region.name} has {region.size} bytes: it can't hold an EDID's registers")
        self._offset = self._read("edid_offset")
        self.max_size = self._read("edid_max_size")
        """Bytes that a description may have."""
        if self._offset < ffi.sizeof(_CTYPE) or self._offset + self.max_size > region.size:
            raise MalformedReplyError(
                f"{region.name} of {region.size:#x} bytes has an EDID of {self.max_size:#x} at {self._offset:#x}"
            )

    @property
    def max_resolution(self) -> tuple[int, int] | None:
        """Pixels that the display can have at most, across and down; `None` where it sets no limit."""
        found = (self._read("max_xres"), self._read("max_yres"))
        return found if all(found) else None

    @property
    def connected(self) -> bool:
        """Tell whether a monitor is connected."""
        return self._read("link_state") == GfxLinkState.UP

    @property
    def edid(self) -> bytes:
        """The description of the monitor; empty before one is set.

        Raises:
            MalformedReplyError: it is said to be longer than it can be.
        """
        size = self._read("edid_size")
        if size > self.max_size:
            raise MalformedReplyError(f"{self.region.name} has an EDID of {size} bytes, of {self.max_size} at most")
        return self.region.pread(self._offset, size) if size else b""

    def connect(self, edid: bytes) -> None:
        """Connect a monitor, in place of the one that is.

        Args:
            edid: its description: blocks of 128 bytes, the first begins with ``00 ff ff ff ff ff ff 00``.

        Raises:
            ArgumentError: it is no EDID.
            BoundsError: it is too long.
        """
        if not edid or len(edid) % _BLOCK or not edid.startswith(_MAGIC):
            raise ArgumentError(f"these {len(edid)} bytes are no EDID: it has blocks of {_BLOCK}, and begins 00ffff…")
        if len(edid) > self.max_size:
            raise BoundsError(f"the EDID has {len(edid)} bytes, and {self.region.name} takes {self.max_size}")
        # Nobody is to see half of it: the cable is out meanwhile.
        self.disconnect()
        self.region.pwrite(self._offset, edid)
        self._write("edid_size", len(edid))
        self._write("link_state", GfxLinkState.UP)

    def disconnect(self) -> None:
        """Take the monitor away; its description stays."""
        self._write("link_state", GfxLinkState.DOWN)

    # The kernel's structure, not a device's registers: it is in the machine's byte order.

    def _read(self, field: str) -> int:
        return int.from_bytes(self.region.pread(ffi.offsetof(_CTYPE, field), _WIDTH), sys.byteorder)

    def _write(self, field: str, value: int) -> None:
        self.region.pwrite(ffi.offsetof(_CTYPE, field), value.to_bytes(_WIDTH, sys.byteorder))

    def __repr__(self) -> str:
        return f"<EdidRegion of {self.region.vdev.name}>"
