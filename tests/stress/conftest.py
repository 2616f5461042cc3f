"""Stress, in a guest of its own: ``make stress``, and for longer ``make stress MINUTES=10``.

``--minutes`` says how long all scenarios run together, beyond what they take to begin and to end.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.leaks import nothing_left
from tests.stress.crew import Crew
from vfio_user.testing import in_guest

if not in_guest():
    collect_ignore_glob = ["test_*.py"]
elif not any(Path("/sys/bus/pci/slots").iterdir()):
    collect_ignore = ["test_unplug.py"]  # this kernel has no driver for the hot-plug slots of the guest

# What the kernel says when it is not well. Faults of the IOMMU are no such thing: a device may run into them.
_ALARMS = ("BUG:", "WARNING:", "Oops", "general protection", "hung_task", "blocked for more than", "refcount_t")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the duration."""
    parser.addoption("--minutes", type=float, default=0.5, help="how long the scenarios of tests/stress run together")


SECONDS = pytest.StashKey[float]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Share the time among the scenarios, and give each some more to begin, to get its work done and to end."""
    scenarios = [item for item in items if Path(__file__).parent in item.path.parents]
    config.stash[SECONDS] = 60 * float(config.getoption("--minutes")) / max(1, len(scenarios))
    for item in scenarios:
        item.add_marker(pytest.mark.timeout(2 * config.stash[SECONDS] + 300))


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long a scenario runs."""
    return request.config.stash[SECONDS]


@pytest.fixture
def crew() -> Iterator[Crew]:
    """Threads that work on a device, checked and counted; nothing may be left of them."""
    with nothing_left():
        crew = Crew()
        yield crew
        assert not crew.at_work, f"still at work: {', '.join(crew.at_work)}"


@pytest.fixture(autouse=True)
def kernel_is_well() -> Iterator[None]:
    """Look into the kernel's log after each scenario."""
    before = len(_log())
    yield
    alarms = [line for line in _log()[before:] if any(alarm in line for alarm in _ALARMS)]
    assert not alarms, "\n".join(alarms)


def _log() -> list[str]:
    return subprocess.run(["busybox", "dmesg"], capture_output=True, text=True, check=True).stdout.splitlines()
