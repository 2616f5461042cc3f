"""What a port counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PortStatistics"]


@dataclass(frozen=True, slots=True)
class PortStatistics:
    """What a port has counted since it was started, over all resets; sizes include the checksum."""

    rx_frames: int
    """Good frames received."""
    tx_frames: int
    """Good frames sent."""
    rx_bytes: int
    """Bytes of good frames received."""
    tx_bytes: int
    """Bytes of good frames sent."""
    missed: int
    """Frames lost because the controller's own memory was full."""
    no_buffers: int
    """Frames that found no receive buffer."""
    crc_errors: int
    """Frames with a wrong checksum."""
    undersized: int
    """Frames of less than 64 bytes."""
    oversized: int
    """Frames that were too long."""
    reported_sent: int
    """Frames that the driver saw reported as sent."""
    aborted: int
    """Frames that were in flight at a reset; they may or may not have been sent."""
    dropped: int
    """Frames that the driver dropped because they came damaged."""
