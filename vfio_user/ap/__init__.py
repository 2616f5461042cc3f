"""Adjunct processors of s390x (crypto cards): a matrix of adapters and domains, given to virtual machines.

Nobody has run this on hardware; emulated machines have neither AP instructions nor KVM. It is written to the kernel's
uAPI and source, and covered by unit tests only.
"""

from __future__ import annotations

from vfio_user.ap.device import AP_OPS, ApDevice
from vfio_user.ap.kvm import KvmVm
from vfio_user.ap.sysfs import ApMdev, ApQueue, create, matrix

__all__ = ["AP_OPS", "ApDevice", "ApMdev", "ApQueue", "KvmVm", "create", "matrix"]
