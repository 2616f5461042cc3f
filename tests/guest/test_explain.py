"""What users are refused, and what the error tells them to do."""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import vfio_user
from vfio_user import IommuMode, testing
from vfio_user.errors import VfioError

NOBODY = 65534


def in_child(work: Callable[[], bool], memlock: int = 65536, *, rights: bool = False) -> bool:
    """Do something in a child, by default without rights, and tell what it returned."""
    pid = os.fork()
    if pid == 0:
        right = False
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
            if not rights:
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


def nodes(address: str, mode: str) -> list[str]:
    """Give the nodes that a mode opens a device through; the last is the device's or its group's."""
    function = vfio_user.pci_function(address)
    device = function.cdev if mode == "iommufd" else f"/dev/vfio/{function.iommu_group}"
    assert device is not None
    return [IommuMode.parse(mode).node, device]


@contextmanager
def handed_over(*paths: str) -> Iterator[None]:
    """Give nodes to somebody without rights."""
    before = {path: os.stat(path) for path in paths}
    for path in paths:
        os.chown(path, NOBODY, NOBODY)
    try:
        yield
    finally:
        for path, stat in before.items():
            os.chown(path, stat.st_uid, stat.st_gid)


def test_permission_is_explained(iommu_mode: str) -> None:
    address = testing.device("edu").address
    way, device = nodes(address, iommu_mode)
    with handed_over(way):
        assert in_child(
            lambda: refused(lambda: vfio_user.open(address, mode=iommu_mode), "EACCES", f"chown $USER {device}")
        )
    with handed_over("/dev/vfio/vfio"):
        assert in_child(lambda: refused(lambda: vfio_user.open(address), "EACCES", "chown"))


def test_memlock_is_explained_and_the_device_stays_usable(iommu_mode: str) -> None:
    address = testing.device("edu").address

    def work() -> bool:
        with vfio_user.open(address, mode=iommu_mode) as pci:
            told = refused(lambda: pci.dma_alloc(1 << 20), "ENOMEM", "RLIMIT_MEMLOCK (64 KiB", "ulimit -l")
            pci.dma_alloc(4096).close()
            return told and pci.bar(0).read32(0) == 0x010000ED

    with handed_over(*nodes(address, iommu_mode)):
        assert in_child(work)


def test_the_way_that_is_open_is_taken() -> None:
    address = testing.device("edu").address

    def work() -> bool:
        with vfio_user.open(address) as pci:
            return pci.address_space.mode is IommuMode.TYPE1V2

    with handed_over(*nodes(address, "type1v2")):
        assert in_child(work)


def test_unbound_device_is_explained() -> None:
    device = testing.devices("edu")[0]
    folder = Path(f"/sys/bus/pci/devices/{device.address}")
    (folder / "driver" / "unbind").write_text(device.address)
    try:
        assert refused(lambda: vfio_user.open(device.address), "bound to vfio-pci", f"vfio-user bind {device.address}")
    finally:
        Path("/sys/bus/pci/drivers_probe").write_text(device.address)


def test_missing_node_is_explained(iommu_mode: str) -> None:
    address = testing.device("edu").address
    words = ("/dev/vfio/devices", "Use its group") if iommu_mode == "iommufd" else ("ENOENT", "pass the node in")
    node = nodes(address, iommu_mode)[-1]
    os.rename(node, f"{node}-hidden")
    try:
        assert refused(lambda: vfio_user.open(address, mode=iommu_mode), *words)
    finally:
        os.rename(f"{node}-hidden", node)


def test_device_of_another_process_is_explained(iommu_mode: str) -> None:
    address = testing.device("edu").address
    with vfio_user.open(address, mode=iommu_mode):
        assert in_child(lambda: refused(lambda: vfio_user.open(address, mode=iommu_mode), "open already"), rights=True)


def test_budget_of_mappings_is_explained() -> None:
    limit = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
    before = limit.read_text()
    limit.write_text("4")
    try:
        with vfio_user.open(testing.device("edu").address, mode="type1v2") as pci:
            buffers = [pci.dma_alloc(4096) for _ in range(4)]
            assert refused(lambda: pci.dma_alloc(4096), "dma_avail: 0", "dma_entry_limit", "pool()")
            for buffer in buffers:
                buffer.close()
    finally:
        limit.write_text(before)
