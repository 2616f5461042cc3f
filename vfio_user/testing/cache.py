"""Keep what is expensive to fetch or build, outside of the checkout, and never use half of it.

An entry is a directory ``<cache>/<kind>/<key>``. It is built in a directory beside its place and renamed, and
it carries a marker with a digest of its file names and sizes. An entry without a marker, or one whose files
do not match the digest (a full disk, a power cut, a helping hand), is thrown away and built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["digest", "entries", "entry", "remembered", "root"]

_MARKER = ".complete"

_log = logging.getLogger(__name__)


def root() -> Path:
    """Return the cache directory: ``$XDG_CACHE_HOME/vfio-user``, or ``~/.cache/vfio-user``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vfio-user"


def digest(*parts: str | bytes) -> str:
    """Return a short digest of `parts`, to be a part of a key."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of an entry, building it when it is missing or damaged.

    Args:
        kind: what it is: ``"kernel"``.
        key: which one; everything that its content depends on. Characters that a file name can't have are
            replaced.
        build: fills the directory that it is given; called once, with other processes kept out.
    """
    place = root() / kind / re.sub(r"[^A-Za-z0-9._+~=-]", "_", key)
    place.parent.mkdir(parents=True, exist_ok=True)
    if _is_complete(place):
        return place
    with _locked(place.parent / f".{place.name}.lock"):
        if _is_complete(place):  # somebody else built it while we waited
            return place
        for left_over in place.parent.glob(f".{place.name}.tmp.*"):
            shutil.rmtree(left_over, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        _log.info("preparing %s %s", kind, key)
        scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.tmp.", dir=place.parent))
        try:
            scratch.chmod(0o755)  # a guest's QEMU may run as another user than the one who filled the cache
            build(scratch)
            _mark(scratch)
            scratch.rename(place)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return place


def entries(kind: str, pattern: str) -> list[Path]:
    """Return the complete entries of a kind whose keys match a glob `pattern`, the last built first."""
    places = [place for place in (root() / kind).glob(pattern) if _is_complete(place)]
    return sorted(places, key=lambda place: (place / _MARKER).stat().st_mtime, reverse=True)


def remembered(name: str, age: float, ask: Callable[[], str]) -> str:
    """Return the answer to a slow question, asked again when the last answer is older than `age` seconds."""
    place = root() / "answers" / name
    try:
        if time.time() - place.stat().st_mtime < age:
            return place.read_text()
    except FileNotFoundError:
        pass
    answer = ask()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as part:
        part.write(answer)
    Path(part.name).rename(place)
    return answer


def _listing(place: Path) -> str:
    """Return the digest of all names and sizes below `place`; contents are not read: a kernel has 400 MB."""
    rows = []
    for folder, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if name != _MARKER:
                rows.append(f"{path.relative_to(place)}\0{path.lstat().st_size}")
    return digest(*rows)


def _mark(place: Path) -> None:
    with (place / _MARKER).open("w") as marker:
        marker.write(_listing(place))
        marker.flush()
        os.fsync(marker.fileno())


def _is_complete(place: Path) -> bool:
    try:
        return (place / _MARKER).read_text() == _listing(place)
    except OSError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
