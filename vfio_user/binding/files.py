"""Folders that binding works on, where tests can put others; and reading of what may be missing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DEV", "JOURNAL", "MODULES", "PROC", "RUN", "entries", "text"]

DEV = Path("/dev")
PROC = Path("/proc")
RUN = Path("/run")
MODULES = Path("/lib/modules")
#: Where the journal is unless told otherwise. The folder is gone after a reboot, as are the changes that it records.
JOURNAL = Path("/run/vfio-user/journal")


def text(path: Path) -> str:
    """Read a small file; empty when it is missing or not ours to read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def entries(folder: Path) -> list[Path]:
    """List a folder in order; empty when it is missing or not ours to read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
