"""What ``list``, ``info`` and ``tree`` say of the guest's devices, checked against other sources."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import vfio_user
from vfio_user import testing
from vfio_user.cli import main


def cli(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(words) == 0
    print(out.getvalue())
    return out.getvalue()


def test_everything_is_listed_with_names() -> None:
    rows: list[dict[str, Any]] = json.loads(cli("list", "--json"))
    assert {row["address"] for row in rows} == set(os.listdir("/sys/bus/pci/devices"))
    for device in testing.devices():
        row = next(row for row in rows if row["address"] == device.address)
        assert (row["driver"], row["viable"], row["blockers"]) == ("vfio-pci", True, [])
        assert row["iommu"] is not None
        assert Path(row["node"]).is_char_device()
        assert row["class_name"]
    nvme = next(row for row in rows if row["address"] == testing.device("nvme").address)
    assert nvme["class_name"] == "Non-Volatile memory controller (NVM Express)"
    assert json.loads(cli("list", "--class", "nvm", "--vfio", "--json"))[0] == nvme
    assert len(json.loads(cli("list", "--id", "1234:11e8", "--json"))) == len(testing.devices("edu"))


def test_what_a_device_tells_when_it_is_opened() -> None:
    address = testing.device("nvme").address
    details = vfio_user.inspect(address, open=True)
    assert details.hidden == ()
    with vfio_user.open(address) as pci:
        assert {region.name: region.size for region in details.regions}["BAR 0"] == pci.bar(0).size
        assert {irq.name: irq.count for irq in details.irqs}["MSI-X"] == pci.irqs.msix.count
        assert details.iova_ranges == tuple(map(str, pci.address_space.iova_ranges))
    found = {each.name: each for each in details.capabilities}
    assert found["msix"].fields["vectors"] == 65
    assert found["express"].fields["function-level reset"] is True
    closed = vfio_user.inspect(address)
    assert {each.name for each in closed.capabilities} == set(found)
    assert closed.mode is None
    assert closed.facts.bars[0].size == details.regions[0].size
    assert "as type1" in cli("info", address, "--open") or details.mode == "iommufd"


def test_info_without_rights_says_what_is_hidden() -> None:
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        hidden = vfio_user.inspect(testing.device("nvme").address, open=True).hidden
        told = len(hidden) == 2 and "root only" in hidden[0] and "EACCES" in hidden[1]
        os._exit(0 if told else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_tree_knows_what_is_reset_together() -> None:
    first, second = (each.address for each in testing.devices("edu")[1:3])
    assert set(vfio_user.inspect(first).facts.reset_domain) == {first, second}
    text = cli("tree")
    assert "hot reset below: 2 functions" in text
    with vfio_user.open(first) as one, vfio_user.open(second, address_space=one.address_space):
        plan = one.device_set.plan()
        assert {str(each.address) for each in plan.affected} == {first, second}
    groups = json.loads(cli("tree", "--groups", "--json"))
    assert any({first, second} <= set(each["members"]) for each in groups)
