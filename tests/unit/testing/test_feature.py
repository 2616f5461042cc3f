"""The feature kernel's configuration is checked after the fact."""

from __future__ import annotations

import shutil
from importlib import resources

import pytest

from vfio_user.testing import feature, machines
from vfio_user.testing.errors import GuestSetupError

FRAGMENT = "# words\nCONFIG_VFIO=y\nCONFIG_NR_CPUS=8\n# CONFIG_IPV6 is not set\n"


def test_what_took_effect_is_no_difference() -> None:
    assert feature.differences(FRAGMENT, "CONFIG_VFIO=y\nCONFIG_NR_CPUS=8\n# CONFIG_IPV6 is not set\n") == []
    # An option whose menu is off is not mentioned at all.
    assert feature.differences(FRAGMENT, "CONFIG_VFIO=y\nCONFIG_NR_CPUS=8\n") == []


def test_what_did_not_is_named() -> None:
    assert feature.differences(FRAGMENT, "CONFIG_VFIO=m\nCONFIG_NR_CPUS=8\nCONFIG_IPV6=y\n") == [
        "CONFIG_VFIO=y",
        "# CONFIG_IPV6 is not set",
    ]


@pytest.mark.parametrize("machine", machines.MACHINES.values(), ids=list(machines.MACHINES))
def test_the_list_has_each_option_once(machine: machines.Machine) -> None:
    text = (resources.files("vfio_user.testing") / "kernel" / machine.config).read_text()
    rows = [row.split("=")[0] for row in text.splitlines() if row.startswith("CONFIG_")]
    assert len(rows) == len(set(rows))
    assert {"CONFIG_IOMMUFD", "CONFIG_VFIO_DEVICE_CDEV", "CONFIG_OVERLAY_FS", "CONFIG_9P_FS"} <= set(rows)


def test_missing_tools_are_named_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("flex", "xz") else f"/usr/bin/{name}")
    with pytest.raises(GuestSetupError, match="flex xz-utils"):
        feature._check_tools(machines.named("x86_64"))


def test_the_cross_compiler_is_named_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if "-linux-gnu-" in name else f"/usr/bin/{name}")
    with pytest.raises(GuestSetupError, match="gcc-s390x-linux-gnu"):
        feature._check_tools(machines.named("s390x"))
