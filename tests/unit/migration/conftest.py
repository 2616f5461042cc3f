"""A device that can be migrated, for failures that a guest does not have."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user import PciDevice
from vfio_user._uapi import ffi, lib
from vfio_user.device.migration.states import DATA_STATES
from vfio_user.kernel import ioctl
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import DeviceFeature, FeatureOperation, MigrationState

if TYPE_CHECKING:
    from vfio_user._uapi import CData

ALL = int(lib.VFIO_MIGRATION_STOP_COPY | lib.VFIO_MIGRATION_P2P | lib.VFIO_MIGRATION_PRE_COPY)


class FakeMigratable(FakeDevice):
    """Answer the requests of migration: any step is taken, the data are those that a test names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.abilities = ALL
        self.state = int(MigrationState.RUNNING)
        self.first, self.rest = b"first part;", b"and the rest"
        self.infos: list[tuple[int, int, int]] = []
        """What it says is left (initial, dirty, flags), one after the other; then nothing."""
        self.refusals: dict[int, int] = {}
        """By state: the errno that going there fails with."""
        self.falls_to: int | None = None
        """State that a refusal leads to; by default none is left."""
        self.steps: list[MigrationState] = []
        self.gives_stream = True
        self.has_v2 = True
        self.asked_v2 = False
        self.stream = os.memfd_create("migration")
        self.saved = -1
        monkeypatch.setattr(ioctl, "system_call", self.wrapped(ioctl.system_call))

    @property
    def loaded(self) -> bytes:
        """What has been written to it since it began to resume."""
        return os.pread(self.stream, 1 << 20, 0)

    def wrapped(self, system_call: object):  # type: ignore[no-untyped-def]  # a closure around the seam
        """Answer for streams too, which the fake kernel does not know."""

        def answer(fd: int, number: int, pointer: CData) -> int:
            if number == requests.VFIO_MIG_GET_PRECOPY_INFO.number and os.path.sameopenfile(fd, self.stream):
                return self.precopy_info(ffi.cast("struct vfio_precopy_info *", pointer))
            return int(system_call(fd, number, pointer))  # type: ignore[operator]

        return answer

    def precopy_info(self, reply: CData) -> int:
        """Say what is left."""
        if self.state not in (MigrationState.PRE_COPY, MigrationState.PRE_COPY_P2P):
            return -errno.EINVAL
        reply.initial_bytes, reply.dirty_bytes, reply.flags = self.infos.pop(0) if self.infos else (0, 0, 0)
        return 0

    def ioctl(self, number: int, pointer: CData) -> int:
        """Answer one request."""
        if number != requests.VFIO_DEVICE_FEATURE.number:
            return super().ioctl(number, pointer)
        asked = ffi.cast("struct vfio_device_feature *", pointer)
        feature = DeviceFeature(asked.flags & lib.VFIO_DEVICE_FEATURE_MASK)
        operation = FeatureOperation(asked.flags & ~lib.VFIO_DEVICE_FEATURE_MASK)
        if not self.abilities:
            return -errno.ENOTTY
        if feature is DeviceFeature.MIG_PRECOPY_INFOV2:
            self.asked_v2 |= self.has_v2 and FeatureOperation.PROBE not in operation
            return 0 if self.has_v2 else -errno.ENOTTY
        if feature is DeviceFeature.MIGRATION:
            ffi.cast("struct vfio_device_feature_migration *", asked.data).flags = self.abilities
            return 0
        if feature is DeviceFeature.MIG_DEVICE_STATE:
            state = ffi.cast("struct vfio_device_feature_mig_state *", asked.data)
            return self._set(state) if FeatureOperation.SET in operation else self._get(state)
        return -errno.ENOTTY

    def _get(self, reply: CData) -> int:
        reply.device_state = self.state
        return 0

    def _set(self, asked: CData) -> int:
        target = MigrationState(asked.device_state)
        asked.data_fd = -1
        if target in self.refusals:
            if self.falls_to is not None:
                self.state = self.falls_to
            return -self.refusals[target]
        begins = target in DATA_STATES and self.state not in {int(each) for each in DATA_STATES}
        if target is MigrationState.STOP_COPY:
            os.pwrite(self.stream, self.rest, 0 if begins else len(self.first))
        elif begins and target is not MigrationState.RESUMING:
            os.pwrite(self.stream, self.first, 0)
        if begins and self.gives_stream:
            os.lseek(self.stream, 0, os.SEEK_SET)
            asked.data_fd = os.dup(self.stream)
        if target not in DATA_STATES:
            os.ftruncate(self.stream, 0)
        self.state = int(target)
        self.steps.append(target)
        return 0

    def close(self) -> None:
        """Take the device out of the machine."""
        os.close(self.stream)
        super().close()


@pytest.fixture
def fake(kernel: FakeKernel, tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMigratable]:
    """A device that can be migrated."""
    tree.add(ADDRESS, driver="vfio-pci", group=7)
    device = FakeMigratable(monkeypatch)
    kernel.devices[ADDRESS] = device
    yield device
    device.close()


@pytest.fixture
def pci(fake: FakeMigratable) -> Iterator[PciDevice]:
    """The same device, open."""
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        yield pci
