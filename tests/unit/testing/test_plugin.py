"""The pytest plugin, as a user's tests see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

pytest_plugins = ("pytester",)

RESULT = "Result(0, 'ran', '', '', '', 1.0, 1.0)"


def in_guest(monkeypatch: pytest.MonkeyPatch, place: Path, driver: str) -> None:
    """Pretend to be a guest with one edu, bound to `driver`."""
    rows = [{"name": "edu0", "kind": "edu", "bus": "pci", "address": "0000:01:00.0"}]
    (place / "devices.json").write_text(json.dumps(rows))
    monkeypatch.setenv("VFIO_USER_DEVICES", str(place / "devices.json"))
    folder = place / "sys/pci/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    (place / driver).mkdir()
    (folder / "driver").symlink_to(place / driver)
    monkeypatch.setattr("vfio_user.testing.plugin._BUSES", place / "sys")


def test_the_mark_describes_the_guest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        from vfio_user.testing import Result, plugin

        pytestmark = pytest.mark.vfio_guest(kernel="6.1", iommu="virtio")

        @pytest.mark.vfio_guest(kernel="6.12", devices=["edu", "nvme"])
        def test_it(vfio_guest, monkeypatch):
            seen = []
            monkeypatch.setattr(plugin, "run", lambda *a, **k: seen.append((a, k)) or {RESULT})
            assert vfio_guest(["ls"], timeout=7.0, cpus=1).stdout == "ran"
            (guest, command), options = seen[0]
            assert (guest.kernel, guest.iommu, guest.devices) == ("6.12", "virtio", ("edu", "nvme"))
            assert (guest.cpus, command, options["timeout"]) == (1, ["ls"], 7.0)
        """
    )
    pytester.runpytest("--strict-markers").assert_outcomes(passed=1)


def test_an_unknown_field_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vfio_guest(kernal="6.1")
        def test_it(vfio_guest):
            pass
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*a guest has no kernal; it has *"])


TEST = """
def test_it(vfio_device):
    assert vfio_device("edu").address == "0000:01:00.0"
"""


def test_a_bound_device_is_given(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_guest(monkeypatch, tmp_path, "vfio-pci")
    pytester.makepyfile(TEST)
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["vfio-user guest: Linux *, devices: edu0=0000:01:00.0"])


def test_a_device_of_another_driver_is_not(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_guest(monkeypatch, tmp_path, "pci-stub")
    pytester.makepyfile(TEST)
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*edu0 (0000:01:00.0) is bound to pci-stub instead of vfio-pci"])


def test_a_test_that_leaves_a_device_unbound_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_guest(monkeypatch, tmp_path, "vfio-pci")
    pytester.makepyfile(TEST + f"    import os; os.unlink('{tmp_path}/sys/pci/devices/0000:01:00.0/driver')\n")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*was left bound to no driver instead of vfio-pci"])


def test_outside_of_a_guest_that_is_said(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VFIO_USER_DEVICES", raising=False)
    pytester.makepyfile(TEST)
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*NotInGuestError*vfio-user guest*"])
