"""Traffic of all drivers at once, in a guest of its own: a little in ``make test``, 10 GiB by ``make traffic``.

``--gib`` says how much all of them carry together.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vfio_user.testing import in_guest

if not in_guest():
    collect_ignore_glob = ["test_*.py"]

_SECONDS_PER_GIB = 240  # several times what an emulated guest takes


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the amount."""
    parser.addoption("--gib", type=float, default=0.1, help="how many GiB the tests of tests/traffic carry together")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give a test as long as it needs for what it is told to carry."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.timeout(300 + _SECONDS_PER_GIB * float(config.getoption("--gib"))))


@pytest.fixture
def gib(request: pytest.FixtureRequest) -> float:
    """How much is carried."""
    return float(request.config.getoption("--gib"))
