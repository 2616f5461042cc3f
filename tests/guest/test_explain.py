"""What users are refused, and what the error tells them to do."""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import vfio_user
from vfio_user import testing
from vfio_user.errors import VfioError

NOBODY = 65534


def as_nobody(work: Callable[[], bool], memlock: int = 65536) -> bool:
    """Do something in a child without rights, and tell what it returned."""
    pid = os.fork()
    if pid == 0:
        right = False
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            right = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refused(work: Callable[[], object], *words: str) -> bool:
    try:
        work()
    except VfioError as error:
        text = str(error)
        print(text)
        return all(word in text for word in words)
    return False


def group_node(address: str) -> str:
    return f"/dev/vfio/{vfio_user.pci_function(address).iommu_group}"


def test_permission_is_explained() -> None:
    address = testing.device("edu").address
    assert as_nobody(lambda: refused(lambda: vfio_user.open(address), "EACCES", "chown", group_node(address)))


def test_memlock_is_explained_and_the_device_stays_usable() -> None:
    address = testing.device("edu").address
    node = group_node(address)

    def work() -> bool:
        with vfio_user.open(address) as pci:
            told = refused(lambda: pci.dma_alloc(1 << 20), "ENOMEM", "RLIMIT_MEMLOCK (64 KiB", "ulimit -l")
            pci.dma_alloc(4096).close()
            return told and pci.bar(0).read32(0) == 0x010000ED

    os.chown(node, NOBODY, NOBODY)
    try:
        assert as_nobody(work)
    finally:
        os.chown(node, 0, 0)


def test_unbound_device_is_explained() -> None:
    device = testing.devices("edu")[0]
    folder = Path(f"/sys/bus/pci/devices/{device.address}")
    (folder / "driver" / "unbind").write_text(device.address)
    try:
        assert refused(lambda: vfio_user.open(device.address), "bound to vfio-pci", "driver_override", device.address)
    finally:
        Path("/sys/bus/pci/drivers_probe").write_text(device.address)


def test_missing_node_is_explained() -> None:
    node = group_node(testing.device("edu").address)
    os.rename(node, f"{node}-hidden")
    try:
        assert refused(lambda: vfio_user.open(testing.device("edu").address), "ENOENT", "pass the node in")
    finally:
        os.rename(f"{node}-hidden", node)


def test_budget_of_mappings_is_explained() -> None:
    limit = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
    before = limit.read_text()
    limit.write_text("4")
    try:
        with vfio_user.open(testing.device("edu").address) as pci:
            buffers = [pci.dma_alloc(4096) for _ in range(4)]
            assert refused(lambda: pci.dma_alloc(4096), "dma_avail: 0", "dma_entry_limit", "pool()")
            for buffer in buffers:
                buffer.close()
    finally:
        limit.write_text(before)
