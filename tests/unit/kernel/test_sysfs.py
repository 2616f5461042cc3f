"""sysfs: read as it is, with what is missing told apart from what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.fake_sysfs import FakeSysfs
from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError, MalformedReplyError, VfioError, VfioOSError
from vfio_user.kernel import sysfs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    return FakeSysfs(tmp_path, monkeypatch)


def test_what_a_function_says(tree: FakeSysfs) -> None:
    tree.add("0000:01:00.0", ids=(0x1234, 0x11E8, 0x00FF00), driver="vfio-pci", group=7, vfio_device="vfio3")
    function = sysfs.pci_function("01:00.0")
    assert function.address == PciAddress(0, 1, 0, 0)
    assert (function.vendor, function.device, function.class_code) == (0x1234, 0x11E8, 0x00FF00)
    assert (function.driver, function.iommu_group, function.vfio_device) == ("vfio-pci", 7, "vfio3")
    assert not function.is_bridge
    assert not function.noiommu


def test_what_a_function_may_lack(tree: FakeSysfs) -> None:
    tree.add("0000:01:00.0")
    function = sysfs.pci_function("0000:01:00.0")
    assert function.driver is None
    assert function.iommu_group is None
    assert function.vfio_device is None
    assert function.numa_node is None
    assert function.reset_methods == ()
    assert not function.noiommu


@pytest.mark.parametrize(("text", "node"), [("-1\n", None), ("0\n", 0), ("3\n", 3)])
def test_numa_node(tree: FakeSysfs, text: str, node: int | None) -> None:
    (tree.add("0000:01:00.0") / "numa_node").write_text(text)
    assert sysfs.pci_function("0000:01:00.0").numa_node == node


def test_reset_methods_in_the_order_of_the_kernel(tree: FakeSysfs) -> None:
    (tree.add("0000:01:00.0") / "reset_method").write_text("flr bus\n")
    assert sysfs.pci_function("0000:01:00.0").reset_methods == ("flr", "bus")


def test_bridge(tree: FakeSysfs) -> None:
    tree.add("0000:00:1c.0", ids=(0x8086, 0x1234, 0x060400))
    assert sysfs.pci_function("0000:00:1c.0").is_bridge


def test_function_that_is_not_there(tree: FakeSysfs) -> None:
    with pytest.raises(ArgumentError, match=r"no PCI function 0000:02:00\.0 on this machine; lspci -D"):
        sysfs.pci_function("02:00.0")
    with pytest.raises(ArgumentError, match="not a PCI address"):
        sysfs.pci_function("../../etc")


def test_function_that_went_away(tree: FakeSysfs) -> None:
    tree.add("0000:01:00.0")
    function = sysfs.pci_function("0000:01:00.0")
    tree.remove("0000:01:00.0")
    assert not function.exists()
    assert function.driver is None
    with pytest.raises(VfioOSError, match=r"read .*/vendor: .*ENOENT"):
        _ = function.vendor


def test_functions_of_the_machine_in_order(tree: FakeSysfs) -> None:
    for address in ("0001:00:00.0", "0000:0a:00.1", "0000:0a:00.0", "0000:02:00.0"):
        tree.add(address)
    names = [str(each.address) for each in sysfs.pci_functions()]
    assert names == ["0000:02:00.0", "0000:0a:00.0", "0000:0a:00.1", "0001:00:00.0"]


def test_machine_without_pci_or_iommu(tree: FakeSysfs) -> None:
    assert sysfs.pci_functions() == ()
    assert sysfs.groups() == ()
    assert sysfs.group(3).members == ()


def test_groups_and_who_is_in_the_way(tree: FakeSysfs) -> None:
    tree.add("0000:01:00.0", driver="vfio-pci", group=10)
    tree.add("0000:01:00.1", driver="snd_hda_intel", group=10)
    tree.add("0000:01:00.2", group=10)
    tree.add("0000:00:1c.0", driver="pcieport", group=10)
    tree.add("0000:02:00.0", driver="mlx5_vfio_pci", group=2)
    assert [each.number for each in sysfs.groups()] == [2, 10]
    ours = sysfs.group(10)
    assert [str(each.address) for each in ours.members] == [
        "0000:00:1c.0",
        "0000:01:00.0",
        "0000:01:00.1",
        "0000:01:00.2",
    ]
    assert [str(each.address) for each in ours.culprits] == ["0000:01:00.1"]
    assert sysfs.group(2).culprits == ()


def test_group_with_devices_of_another_bus(tree: FakeSysfs) -> None:
    tree.add("0000:01:00.0", group=4)
    (tree.root / "kernel/iommu_groups/4/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001").mkdir()
    assert [str(each.address) for each in sysfs.group(4).members] == ["0000:01:00.0"]


@pytest.mark.parametrize("text", ["", "0x", "-1", "1 2", "0x1_0", "\uff10x1", "zz", "0x1ffffffffffffffff", "\0"])
def test_number_that_the_kernel_would_not_write(tree: FakeSysfs, text: str) -> None:
    (tree.add("0000:01:00.0") / "vendor").write_text(text)
    with pytest.raises(MalformedReplyError, match=r"vendor says .*, which is no number"):
        _ = sysfs.pci_function("0000:01:00.0").vendor


TEXT = st.binary(max_size=40) | st.from_regex(rb"(0x[0-9a-f]{1,17} ?){0,4}\n?", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["vendor", "class", "numa_node", "reset_method", "resource"]), text=TEXT)
def test_any_text_is_read_or_refused(tmp_path: Path, tree: FakeSysfs, name: str, text: bytes) -> None:
    path = tree.root / "bus/pci/devices/0000:01:00.0"
    if not path.exists():
        tree.add("0000:01:00.0")
    before = (path / name).read_bytes() if (path / name).exists() else b""
    (path / name).write_bytes(text)
    function = sysfs.pci_function("0000:01:00.0")
    try:
        for number in (function.vendor, function.class_code, function.numa_node or 0):
            assert 0 <= number < 1 << 64
        assert all(isinstance(each, str) for each in function.reset_methods)
        assert all(each.first < each.last for each in sysfs.memory_windows())
    except VfioError as error:
        assert isinstance(error, MalformedReplyError)  # noqa: PT017
    finally:
        (path / name).write_bytes(before)


@pytest.mark.parametrize("number", ["x7", "-1", "7\n7"])
def test_group_that_is_no_number(tree: FakeSysfs, number: str) -> None:
    path = tree.add("0000:01:00.0")
    (path / "iommu_group").symlink_to(tree.root / "kernel/iommu_groups" / number)
    with pytest.raises(MalformedReplyError, match="iommu_group says"):
        _ = sysfs.pci_function("0000:01:00.0").iommu_group
