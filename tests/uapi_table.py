"""Make the table of the uAPI's requests and the lanes in which the kernel granted them, in ``docs/uapi.md``.

    make test && .venv/bin/python tests/uapi_table.py

The lanes of ``tests/lanes.py`` that run in guests write down what was granted (``tests/uapi_record.py``). Those that
have not run keep the column that they have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from tests.lanes import LANES, OUT  # noqa: E402  # run as a script, from anywhere
from tests.uapi_record import NO_MODE, rows  # noqa: E402

__all__ = ["TABLE", "make", "read"]

TABLE = TOP / "docs" / "uapi.md"
_HEAD = """\
# What of the uAPI is tried, and where

Each request of `/dev/vfio` and `/dev/iommu` up to Linux 7.3, and each feature of a device; and the lanes of `make test`
in whose guests the kernel granted it. A cell names the IOMMU modes of the tests in which it was (`all`: each mode that
the lane has; `containers`: all but iommufd); `yes` stands for tests that are about no mode in particular. `IOMMU_`
requests that only `corners` has are granted by the kernel's mock IOMMU: [Known limits](limits.md). What is empty in
every lane is declared and typed, and what it takes is missing in a guest (other processors, real hardware).

Made by `make test && .venv/bin/python tests/uapi_table.py`; do not edit.

"""
_MODES = ("type1", "type1v2", "compat-type1", "compat-type1v2", "iommufd")

Cells = dict[str, dict[str, str]]


def read(text: str) -> Cells:
    """Read a table: for each lane, for each row that has something, the cell."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    if len(lines) < 2:
        return {}
    lanes = lines[0][1:]
    return {
        lane: {
            row[0].strip("` "): row[number].strip() for row in lines[2:] if number < len(row) and row[number].strip()
        }
        for number, lane in enumerate(lanes, 1)
    }


def make(cells: Cells) -> str:
    """Write the table of these cells; every request of the uAPI is a row."""
    lanes = [lane.name for lane in LANES if cells.get(lane.name)]
    lines = [["request", *lanes], ["---"] * (len(lanes) + 1)]
    lines += [[f"`{name}`", *(cells[lane].get(name, "") for lane in lanes)] for name in rows()]
    return _HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(modes: list[str], present: set[str]) -> str:
    """Say in few words in which of a lane's modes a request was granted."""
    found = [mode for mode in _MODES if mode in modes]
    if not found:
        return "yes"
    if set(found) == present:
        return "all"
    return "containers" if set(found) == present - {"iommufd"} else ", ".join(found)


def main() -> int:
    """Write the table anew; columns of lanes that have not run stay."""
    cells = read(TABLE.read_text()) if TABLE.exists() else {}
    for lane in LANES:
        path = OUT / lane.name / "uapi.json"
        if path.exists():
            granted: dict[str, list[str]] = json.loads(path.read_text())
            present = {mode for modes in granted.values() for mode in modes} - {NO_MODE}
            cells[lane.name] = {name: cell(modes, present) for name, modes in granted.items()}
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(make(cells))
    print(f"{TABLE.relative_to(TOP)}: {', '.join(cells) or 'no lane has run'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
