"""Plans of hot resets: who is affected, what stands against it, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

import vfio_user
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from tests.unit.pci.reset_fakes import ResettableDevice
from vfio_user import PciAddress
from vfio_user.errors import NotOwnedError, ResetBlockedError
from vfio_user.kernel.sysfs import PciFunction
from vfio_user.pci.devset import _domain, _key
from vfio_user.pci.hot_reset_info import AffectedFunction, HotResetInfo
from vfio_user.pci.plan import make_plan

ONE, TWO, THREE = "0000:01:00.0", "0000:01:00.1", "0000:01:02.0"


def info(*addresses: str, groups: tuple[int, ...] = ()) -> HotResetInfo:
    numbers = groups or (7,) * len(addresses)
    return HotResetInfo(
        False,
        False,
        tuple(
            AffectedFunction(PciAddress.parse(address), group, None, None)
            for address, group in zip(addresses, numbers, strict=True)
        ),
    )


def test_owned_and_open(kernel: FakeKernel, tree: FakeSysfs) -> None:
    for number, address in enumerate((ONE, TWO)):
        tree.add(address, driver="vfio-pci", group=7, vfio_device=f"vfio{number}")
    kernel.devices[ONE] = ResettableDevice([(7, 1, 0), (7, 1, 1)])
    with vfio_user.open(ONE, mode="type1v2") as pci:
        plan = pci.device_set.plan()
        assert plan.possible
        plan.require()
        assert [each.verdict for each in plan.affected] == ["open", "ours, not open"]
        assert (plan.groups, plan.advice) == ((7,), ())
        assert "possible" in str(plan)
        assert plan.to_json()["possible"] is True


def test_not_owned(tree: FakeSysfs) -> None:
    tree.add(ONE, driver="vfio-pci", group=7, vfio_device="vfio0")
    tree.add(TWO, driver="vfio-pci", group=8, vfio_device="vfio1")
    plan = make_plan(ONE, info(ONE, TWO, groups=(7, 8)))
    assert not plan.possible
    assert plan.groups == (7, 8)
    with pytest.raises(NotOwnedError, match="open_all") as caught:
        plan.require()
    assert caught.value.addresses == (ONE, TWO)
    assert f"-> Open them together: vfio_user.open_all(['{ONE}', '{TWO}'])." in str(plan)


def test_not_owned_by_the_iommufd(tree: FakeSysfs) -> None:
    for address in (ONE, TWO):
        tree.add(address, driver="vfio-pci", group=7, vfio_device="vfio0")
    functions = (
        AffectedFunction(PciAddress.parse(ONE), None, 1, True),
        AffectedFunction(PciAddress.parse(TWO), None, None, False),
    )
    plan = make_plan(ONE, HotResetInfo(True, False, functions))
    assert (plan.by_dev_id, plan.groups, plan.possible) == (True, (), False)
    with pytest.raises(NotOwnedError, match=f"Open {TWO} with the same address space"):
        plan.require()
    assert plan.to_json()["ownership"] == "iommufd"


@pytest.mark.parametrize(
    ("driver", "why", "remedy"),
    [
        (None, "is bound to no driver", "Bind 0000:01:00.1 to vfio-pci"),
        ("nvme", "is bound to nvme, not to a VFIO driver", "Bind 0000:01:00.1 to vfio-pci"),
        ("pci-stub", "is bound to pci-stub", "Bind 0000:01:00.1 to vfio-pci"),
        ("pcieport", "is a bridge", "no bridge beside it"),
    ],
)
def test_blocked_by_a_neighbour(tree: FakeSysfs, driver: str | None, why: str, remedy: str) -> None:
    tree.add(ONE, driver="vfio-pci", group=7, vfio_device="vfio0")
    tree.add(TWO, driver=driver, group=7)
    plan = make_plan(ONE, info(ONE, TWO))
    assert [str(each.address) for each in plan.blocking] == [TWO]
    assert (plan.affected[1].verdict, plan.possible) == ("blocks", False)
    with pytest.raises(ResetBlockedError, match=f"{TWO} {why}.*{remedy}") as caught:
        plan.require()
    assert caught.value.culprits == ((TWO, driver or ""),)


def test_virtual_functions_block(tree: FakeSysfs) -> None:
    physical = tree.add(ONE, driver="vfio-pci", group=7, vfio_device="vfio0")
    virtual = tree.add(TWO, driver="vfio-pci", group=8, vfio_device="vfio1")
    (virtual / "physfn").symlink_to(physical)
    with pytest.raises(ResetBlockedError, match="sriov_numvfs"):
        make_plan(ONE, info(ONE, TWO)).require()
    with pytest.raises(ResetBlockedError, match=r"Use reset\(\)"):
        make_plan(TWO, info(ONE, TWO)).require()


def test_variant_drivers_of_vfio_are_no_obstacle(tree: FakeSysfs) -> None:
    tree.add(ONE, driver="vfio-pci", group=7, vfio_device="vfio0")
    tree.add(TWO, driver="mlx5_vfio_pci", group=7)
    assert make_plan(ONE, info(ONE, TWO)).blocking == ()


# -- keys: device itself, slot, bus


def test_keys_are_those_of_the_kernel(kernel: FakeKernel, tree: FakeSysfs, tmp_path: Path) -> None:
    kernel.devices[ONE] = ResettableDevice([(7, 1, 0), (7, 1, 1)])
    fd = kernel._open_device(ONE)
    path = tree.add(ONE)
    function = PciFunction(PciAddress.parse(ONE))
    assert _key(function, fd) == ("slot", 0, 1, 0)
    kernel.devices[ONE].dependents = [(7, 1, 0), (9, 2, 0)]  # type: ignore[attr-defined]  # a bus below does not matter
    assert _key(function, fd) == ("slot", 0, 1, 0)
    kernel.failing["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"] = 19
    assert _key(function, fd) == ("bus", 0, 1)
    (path / "physfn").symlink_to(tmp_path)
    assert _key(function, fd) == ("function", ONE)


def test_several_slots_of_a_bus_are_one_set() -> None:
    for address in (ONE, THREE):
        assert _domain(PciFunction(PciAddress.parse(address)), info(ONE, TWO, THREE)) == ("bus", 0, 1)


def test_a_function_on_a_root_bus_is_one_for_itself(tree: FakeSysfs) -> None:
    path = tree.add(ONE)
    place = tree.root / "devices/pci0000:00" / ONE
    place.parent.mkdir(parents=True)
    path.rename(place)
    path.symlink_to(place)
    assert _key(PciFunction(PciAddress.parse(ONE)), -1) == ("function", ONE)
