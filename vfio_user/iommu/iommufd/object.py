"""Objects of an iommufd: what they have in common is a number and an end."""

from __future__ import annotations

import errno
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user.errors import ClosedError
from vfio_user.iommu.iommufd.command import command
from vfio_user.kernel.ioctl import requests

if TYPE_CHECKING:
    from vfio_user.iommu.iommufd.fd import Iommufd

__all__ = ["IommufdObject"]


class IommufdObject:
    """One object of an iommufd.

    Lifetime:
        `destroy()`, the ``with`` block, or with its iommufd. The kernel refuses to destroy an object that others are
        built on (EBUSY): those go first.
    Locking:
        Every method is one system call; the kernel serialises them.
    """

    def __init__(self, iommufd: Iommufd, number: int) -> None:
        self.iommufd = iommufd
        """What it belongs to."""
        self.id = number
        """Its number in that iommufd, as other requests name it."""
        self._destroyed = False

    @property
    def destroyed(self) -> bool:
        """Tell whether it is gone."""
        return self._destroyed or self.iommufd.closed

    def destroy(self) -> None:
        """Destroy it; destroying twice does nothing: ``IOMMU_DESTROY``.

        Raises:
            VfioIoctlError: EBUSY while something else is built on it, or a device is attached to it.
        """
        if self.destroyed:
            self._destroyed = True
            return
        hints = {errno.EBUSY: "Something is built on it, or a device is attached to it; that goes first"}
        command(self.iommufd.fd, requests.IOMMU_DESTROY, "struct iommu_destroy", hints=hints, id=self.id)
        self._destroyed = True

    def _live(self) -> int:
        if self._destroyed:
            raise ClosedError(f"{self!r} was destroyed")
        return self.id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{' destroyed' if self.destroyed else ''}>"
