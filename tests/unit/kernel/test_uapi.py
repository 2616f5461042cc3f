from __future__ import annotations

import enum
import inspect
import re
from pathlib import Path

import pytest

from vfio_user._uapi import lib
from vfio_user.kernel import uapi
from vfio_user.kernel.uapi import IrqFlags, MigrationState, PciIrq, PciRegion, RegionFlags

CLASSES = [getattr(uapi, name) for name in uapi.__all__]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_values_come_from_the_declarations(kind: type[enum.IntEnum]) -> None:
    source = Path(inspect.getsourcefile(kind) or "").read_text()
    body = source.split(f"class {kind.__name__}(")[1].split("\nclass ")[0]
    for name in kind.__members__:
        match = re.search(rf"^    {name} = lib\.(\w+)\n    \"\"\"[^\n]+\"\"\"$", body, re.MULTILINE)
        assert match, f"{kind.__name__}.{name} has no constant, or no line that says what it is"
        assert kind[name].value == getattr(lib, match[1])
    assert body.count(" = ") == len(kind.__members__)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_no_two_names_for_one_value(kind: type[enum.IntEnum]) -> None:
    assert len(set(kind)) == len(kind.__members__)


def test_unknown_flags_are_kept() -> None:
    flags = RegionFlags(1 << 30 | RegionFlags.MMAP)
    assert flags & RegionFlags.MMAP
    assert int(flags) == 1 << 30 | 4


def test_unknown_states_are_refused() -> None:
    with pytest.raises(ValueError, match="99"):
        MigrationState(99)


def test_some_numbers_that_everybody_knows() -> None:
    assert [int(index) for index in PciRegion] == list(range(lib.VFIO_PCI_NUM_REGIONS))
    assert [int(index) for index in PciIrq] == list(range(lib.VFIO_PCI_NUM_IRQS))
    assert IrqFlags.EVENTFD | IrqFlags.NORESIZE == 9
