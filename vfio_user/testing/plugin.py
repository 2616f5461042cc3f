"""pytest plugin: guests for tests on this machine, and emulated devices for tests inside of a guest.

On this machine, a test takes the fixture `vfio_guest` and runs something in a guest; the mark says in which::

    @pytest.mark.vfio_guest(kernel="6.12", devices=["edu", "nvme,size=64M"])
    def test_my_tool(vfio_guest):
        assert vfio_guest(["./my-tool", "--list"]).returncode == 0

Inside of a guest (``vfio-user guest --device edu -- pytest``), a test takes `vfio_device` and gets devices
that are bound to vfio-pci::

    def test_my_driver(vfio_device):
        edu = vfio_device("edu")
        with vfio_user.open(edu.address) as pci: ...

pytest loads this by itself when vfio_user is installed.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vfio_user.kernel.sysfs import VFIO_DRIVERS
from vfio_user.testing import inside
from vfio_user.testing.errors import GuestError, GuestSpecError
from vfio_user.testing.guest import Guest, run
from vfio_user.testing.watch import Result

__all__ = ["GuestRunner", "pytest_configure", "pytest_report_header", "vfio_device", "vfio_guest"]

_MARKS = (
    "vfio_guest(kernel=…, devices=[…], iommu=…, memory=…, cpus=…, append=…): "
    "the guest of the fixture vfio_guest; keywords are the fields of vfio_user.testing.Guest",
)
_BUSES = Path("/sys/bus")


@dataclasses.dataclass(frozen=True, slots=True)
class GuestRunner:
    """What the fixture `vfio_guest` gives: call it to boot the guest and run a command in it."""

    guest: Guest
    """What it boots."""
    output: Path
    """Folder that the guest writes to, as ``$VFIO_USER_OUTPUT``."""

    def __call__(self, command: Sequence[str], *, timeout: float = 300.0, **changes: object) -> Result:
        """Run `command`; its output goes on to pytest's capture, too.

        Args:
            command: program and arguments.
            timeout: seconds for all of it.
            changes: fields of `Guest` to change for this run.

        Raises:
            GuestError: as `vfio_user.testing.run`.
        """
        result = run(_guest(self.guest, changes), command, timeout=timeout, output=self.output)
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
        return result


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks."""
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)


def pytest_report_header() -> list[str]:
    """Say in which guest the tests run, if they do."""
    if not inside.in_guest():
        return []
    found = " ".join(f"{item.name}={item.address}" for item in inside.devices())
    return [f"vfio-user guest: Linux {platform.release()}, devices: {found or 'none'}"]


@pytest.fixture
def vfio_guest(request: pytest.FixtureRequest, tmp_path: Path) -> GuestRunner:
    """Run commands in the guest that the mark ``vfio_guest`` describes; for tests outside of a guest."""
    guest = Guest()
    for mark in reversed(list(request.node.iter_markers("vfio_guest"))):  # the closest mark has the last word
        guest = _guest(guest, mark.kwargs)
    return GuestRunner(guest, tmp_path / "guest-output")


@pytest.fixture
def vfio_device() -> Iterator[Callable[[str], inside.GuestDevice]]:
    """Give emulated devices of the guest that the test runs in: by kind (``"edu"``) or name (``"edu1"``).

    It fails where there is no such device or where it is not bound to vfio-pci, before and after the test: a
    test must leave devices as it found them.
    """
    used: list[inside.GuestDevice] = []

    def take(name: str) -> inside.GuestDevice:
        item = inside.device(name)
        _check_bound(item, "is")
        used.append(item)
        return item

    yield take
    for item in used:
        _check_bound(item, "was left")


def _check_bound(item: inside.GuestDevice, verb: str) -> None:
    driver = _BUSES / item.bus / "devices" / item.address / "driver"
    name = driver.resolve().name if driver.exists() else "no driver"
    wanted = VFIO_DRIVERS[item.bus]
    if name != wanted:
        raise GuestError(f"{item.name} ({item.address}) {verb} bound to {name} instead of {wanted}")


def _guest(guest: Guest, changes: dict[str, object]) -> Guest:
    fields = {field.name for field in dataclasses.fields(Guest)}
    unknown = sorted(set(changes) - fields)
    if unknown:
        raise GuestSpecError(f"a guest has no {', '.join(unknown)}; it has {', '.join(sorted(fields))}")
    if "devices" in changes:
        changes = changes | {"devices": tuple(changes["devices"])}  # type: ignore[arg-type]  # mark's own list
    return dataclasses.replace(guest, **changes)  # type: ignore[arg-type]  # checked by name above
