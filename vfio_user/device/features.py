"""Optional abilities of a device, found by probing: ``VFIO_DEVICE_FEATURE``."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfio_user._uapi import lib
from vfio_user.errors import UnsupportedError, VfioIoctlError
from vfio_user.kernel.ioctl import Reply, feature_get, feature_probe, feature_set
from vfio_user.kernel.uapi import DeviceFeature, FeatureOperation

if TYPE_CHECKING:
    from vfio_user.device.base import VfioDevice

__all__ = ["DeviceFeatures"]

_GET, _SET = FeatureOperation.GET, FeatureOperation.SET


class DeviceFeatures:
    """What a device can do beyond regions and interrupts: ``vdev.features``.

    Iterating gives those that it has, as it says now: some come and go, such as the VF token of a physical function.
    Kernel and device are asked each time, nothing is concluded from a version.

    Lifetime:
        Lives as long as its device.
    Locking:
        Each method is one system call or a few; any thread may call.
    """

    def __init__(self, vdev: VfioDevice) -> None:
        self._vdev = vdev

    def operations(self, feature: DeviceFeature | int) -> FeatureOperation:
        """Give which of `FeatureOperation.GET` and ``SET`` the device has of a feature; none when it lacks it.

        Raises:
            ArgumentError: the number is none of a feature.
        """
        with self._vdev.user() as fd:
            found = FeatureOperation(0)
            for operation in (_GET, _SET):
                if feature_probe(fd, feature, operation, device=self._vdev.name):
                    found |= operation
            return found

    def __contains__(self, feature: DeviceFeature | int) -> bool:
        return bool(self.operations(feature))

    def __iter__(self) -> Iterator[DeviceFeature]:
        return (each for each in DeviceFeature if each in self)

    def require(self, feature: DeviceFeature, operation: FeatureOperation = FeatureOperation(0)) -> None:  # noqa: B008
        """Make sure that the device has a feature, with an operation if one is named.

        Raises:
            UnsupportedError: it has not; says what is missing.
        """
        found = self.operations(feature)
        if not found or operation & ~found:
            raise self.missing(feature)

    def missing(self, feature: DeviceFeature) -> UnsupportedError:
        """Give the error that says that the device has no such feature."""
        return UnsupportedError(
            f"{self._vdev.name} has no feature {feature.name}: this kernel, or its driver for the device, lacks it"
        )

    def get(self, feature: DeviceFeature, ctype: str, /, **fields: object) -> Reply:
        """Read a feature; see `kernel.ioctl.feature_get`.

        Raises:
            UnsupportedError: the device has no such feature (ENOTTY).
            VfioIoctlError: what else the kernel says, by the feature's own rules.
        """
        try:
            with self._vdev.user() as fd:
                return feature_get(fd, feature, ctype, device=self._vdev.name, **fields)
        except VfioIoctlError as error:
            raise self._explained(error, feature) from error

    def set(
        self, feature: DeviceFeature, ctype: str | None = None, /, *, payload: bytes = b"", **fields: object
    ) -> Reply:
        """Write a feature; see `kernel.ioctl.feature_set`. Raises as `get` does."""
        try:
            with self._vdev.user() as fd:
                return feature_set(fd, feature, ctype, payload=payload, device=self._vdev.name, **fields)
        except VfioIoctlError as error:
            raise self._explained(error, feature) from error

    # -- those that are a number

    def set_bus_master(self, enable: bool) -> None:
        """Let the device start transactions, or stop it, where it has no configuration space (CDX): ``BUS_MASTER``.

        Raises:
            UnsupportedError: it has one, or the kernel can't.
        """
        operation = lib.VFIO_DEVICE_FEATURE_SET_MASTER if enable else lib.VFIO_DEVICE_FEATURE_CLEAR_MASTER
        self.set(DeviceFeature.BUS_MASTER, "struct vfio_device_feature_bus_master", op=operation)

    @property
    def zpci_error(self) -> int:
        """Record of the last PCI error on s390, as the firmware gives it, 64 bits: ``ZPCI_ERROR``.

        Raises:
            UnsupportedError: this is no such machine, or the kernel can't (before 7.3).
        """
        return int(self.get(DeviceFeature.ZPCI_ERROR, "struct vfio_device_feature_zpci_err").data.data)

    def _explained(self, error: VfioIoctlError, feature: DeviceFeature) -> Exception:
        return self.missing(feature) if error.errno == errno.ENOTTY else error

    def __repr__(self) -> str:
        return f"<DeviceFeatures of {self._vdev.name}>"
