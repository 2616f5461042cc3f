"""A PCI bus that does what is written to sysfs, and that a process can be killed at between any two steps."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.fake_sysfs import FakeSysfs
from vfio_user.binding import files, journal, nodes, state
from vfio_user.binding.state import NodeState
from vfio_user.errors import VfioOSError
from vfio_user.kernel import writes

if TYPE_CHECKING:
    import pytest

    from vfio_user.addresses import PciAddress
    from vfio_user.binding.record import Record

GROUP_MAJOR, DEVICE_MAJOR = 511, 510


def cdev(address: str) -> str:
    """Name the character device of a function."""
    return f"vfio{int(address[5:7], 16) * 8 + int(address[-1])}"


class Killed(BaseException):
    """The process is killed here."""


class FakeBus(FakeSysfs):
    """sysfs that reacts, ``/dev``, ``/proc``, and a journal in a folder of its own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root / "sys", monkeypatch)
        self.dev, self.proc, self.run = root / "dev", root / "proc", root / "run"
        for name, value in (("DEV", self.dev), ("PROC", self.proc), ("RUN", self.run), ("JOURNAL", root / "journal")):
            monkeypatch.setattr(files, name, value)
        self.journal = root / "journal"
        self.put("proc/sys/kernel/random/boot_id", "b007-1\n", root)
        self.defaults: dict[str, str] = {}
        """By address: the driver that the kernel itself chooses."""
        self.refusing: dict[str, int] = {}
        """By driver: the errno with which it refuses every device."""
        self.makes_nodes = True
        self.owners: dict[str, NodeState] = {}
        self.log: list[str] = []
        """What was written, as it came."""
        self.steps = 0
        self.dies_at: int | None = None
        """The step at which the process is killed; there is one before and one after everything that lasts."""
        self._dead = False
        monkeypatch.setattr(writes, "write", self.write)
        monkeypatch.setattr(nodes, "is_node", lambda path, _: path.exists())
        monkeypatch.setattr("shutil.which", lambda _: None)
        for module in (state, nodes):
            monkeypatch.setattr(module, "node_state", self.node_state)
        monkeypatch.setattr(nodes, "set_owner", self.set_owner)
        monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing is switched off here
        put, remove = journal.Journal.put, journal.Journal.remove

        def slow_put(book: journal.Journal, record: Record) -> None:
            self.step()
            put(book, record)
            self.step()

        def slow_remove(book: journal.Journal, address: PciAddress) -> None:
            self.step()
            remove(book, address)
            self.step()

        monkeypatch.setattr(journal.Journal, "put", slow_put)
        monkeypatch.setattr(journal.Journal, "remove", slow_remove)

    # -- the machine

    def add_function(
        self,
        address: str,
        driver: str | None = None,
        *,
        group: int | None = None,
        ids: tuple[int, int, int] = (0x1234, 0x11E8, 0x00FF00),
    ) -> Path:
        """Add a function whose driver, if any, is the kernel's own choice."""
        path = self.add(address, group=group, ids=ids)
        (path / "driver_override").write_text("(null)\n")
        if driver is not None:
            self.defaults[address] = driver
            self.bind(address, driver)
        return path

    def driver(self, *names: str) -> None:
        """Load drivers."""
        for name in names:
            (self.root / "bus/pci/drivers" / name).mkdir(parents=True, exist_ok=True)

    def put(self, name: str, text: str, top: Path | None = None) -> Path:
        """Write a file, in sysfs or elsewhere."""
        path = (top or self.root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def shape(self) -> dict[str, tuple[str | None, str, str]]:
        """Give driver, override and numvfs of every function."""
        found: dict[str, tuple[str | None, str, str]] = {}
        for path in sorted((self.root / "bus/pci/devices").iterdir()):
            link = path / "driver"
            override = (path / "driver_override").read_text().strip()
            virtual = path / "sriov_numvfs"
            found[path.name] = (
                os.path.basename(os.readlink(link)) if link.is_symlink() else None,
                "" if override == "(null)" else override,
                virtual.read_text().strip() if virtual.exists() else "",
            )
        return found

    def reboot(self) -> None:
        """Boot again: another boot id, the kernel's own drivers."""
        self.put("proc/sys/kernel/random/boot_id", "b007-2\n", self.dev.parent)

    # -- a process

    def step(self) -> None:
        """Die here, if this is the place."""
        if self._dead or self.steps == self.dies_at:
            self._dead = True
            raise Killed
        self.steps += 1

    def revive(self) -> None:
        """Start another process, which is not killed."""
        self._dead, self.dies_at = False, None

    def write(self, path: Path, text: str, deadline: float) -> None:
        """Do what the kernel does when this is written."""
        self.step()
        self.log.append(f"{path.relative_to(self.root)}={text.strip()}")
        self._react(path, text.strip())
        self.step()

    def node_state(self, path: Path) -> NodeState | None:
        """Give owner and mode of a node."""
        return self.owners.get(str(path), NodeState(str(path), 0, 0, 0o600)) if path.exists() else None

    def set_owner(self, node: NodeState) -> None:
        """Set owner and mode of a node, in two steps, as the system calls do."""
        self.step()
        before = self.node_state(Path(node.path))
        assert before is not None
        self.owners[node.path] = NodeState(node.path, node.uid, node.gid, before.mode)
        self.step()
        self.owners[node.path] = node
        self.step()

    def _react(self, path: Path, text: str) -> None:
        device = self.root / "bus/pci/devices" / text
        if path.name == "driver_override":
            path.write_text(f"{text or '(null)'}\n")
        elif path.name == "sriov_numvfs":
            path.write_text(f"{text}\n")
        elif path.name == "unbind":
            if not path.parent.exists():
                raise VfioOSError(errno.ENOENT, f"write to {path}")
            self._unbind(text)
        elif path.name == "bind":
            name = path.parent.name
            override = (device / "driver_override").read_text().strip()
            if name in self.refusing:
                raise VfioOSError(self.refusing[name], f"write {text!r} to {path}")
            if (device / "driver").exists() or override not in ("(null)", name):
                raise VfioOSError(errno.ENODEV, f"write {text!r} to {path}")
            if override == "(null)" and self.defaults.get(text) != name:
                raise VfioOSError(errno.ENODEV, f"write {text!r} to {path}")
            self._bind(text, name)
        elif path.name == "drivers_probe":
            if not (device / "driver").exists() and text in self.defaults:
                self._bind(text, self.defaults[text])
        else:
            raise AssertionError(f"nobody should write {text!r} to {path}")

    def _bind(self, address: str, driver: str) -> None:
        self.bind(address, driver)
        if "vfio" not in driver:
            return
        device = self.root / "bus/pci/devices" / address
        number = os.path.basename(os.path.realpath(device / "iommu_group"))
        name = cdev(address)
        self.put(f"class/vfio/{number}/dev", f"{GROUP_MAJOR}:{number}\n")
        self.put(f"vfio-dev/{name}/dev", f"{DEVICE_MAJOR}:{number}\n", device)
        if self.makes_nodes:
            self.put(f"vfio/{number}", "", self.dev)
            self.put(f"vfio/devices/{name}", "", self.dev)

    def _unbind(self, address: str) -> None:
        device = self.root / "bus/pci/devices" / address
        link = device / "driver"
        driver = os.path.basename(os.readlink(link))
        link.unlink()
        virtual = device / "sriov_numvfs"
        if virtual.exists():
            virtual.write_text("0\n")
        if "vfio" not in driver:
            return
        number = os.path.basename(os.path.realpath(device / "iommu_group"))
        shutil.rmtree(device / "vfio-dev" / cdev(address))
        node = self.dev / "vfio/devices" / cdev(address)
        node.unlink(missing_ok=True)
        self.owners.pop(str(node), None)
        others = (self.root / "kernel/iommu_groups" / number / "devices").iterdir()
        if not any("vfio" in os.path.realpath(other / "driver") for other in others):
            (self.root / f"class/vfio/{number}/dev").unlink()
            (self.dev / f"vfio/{number}").unlink(missing_ok=True)
            self.owners.pop(str(self.dev / f"vfio/{number}"), None)
