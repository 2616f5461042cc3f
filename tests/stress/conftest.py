"""Stress, in a guest of its own: ``make stress``, and for minutes ``make stress MINUTES=5``.

``--seconds`` says for how long each scenario runs.
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

# What the kernel says when it is not well. Faults of the IOMMU are no such thing: a device may run into them.
_ALARMS = ("BUG:", "WARNING:", "Oops", "general protection", "hung_task", "blocked for more than", "refcount_t")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the duration."""
    parser.addoption("--seconds", type=float, default=15.0, help="how long each scenario of tests/stress runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each scenario the time that it was asked to take, and some more."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3 * config.getoption("--seconds") + 240))


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long a scenario runs."""
    return float(request.config.getoption("--seconds"))


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
