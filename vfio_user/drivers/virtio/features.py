"""Feature bits that every virtio device has, and its status (virtio 1.2, 2.1 and 6)."""

from __future__ import annotations

import enum

__all__ = ["DeviceStatus", "Feature"]


class Feature(enum.IntFlag):
    """Feature bits that are not of one kind of device (6)."""

    INDIRECT_DESC = 1 << 28
    """A descriptor may name a table of descriptors."""
    EVENT_IDX = 1 << 29
    """Driver and device say at which index they want to be told."""
    VERSION_1 = 1 << 32
    """It follows version 1 of the specification."""
    ACCESS_PLATFORM = 1 << 33
    """It reaches memory through the platform's IOMMU. Without, addresses are physical, and no IOMMU stops it."""
    RING_PACKED = 1 << 34
    """Packed virtqueues."""
    ORDER_PLATFORM = 1 << 36
    """Memory is to be ordered as for any other device of the platform."""


class DeviceStatus(enum.IntFlag):
    """How far driver and device have come with each other (2.1)."""

    ACKNOWLEDGE = 1
    """The driver has seen it."""
    DRIVER = 2
    """The driver knows how to drive it."""
    DRIVER_OK = 4
    """The driver is ready."""
    FEATURES_OK = 8
    """The features are agreed upon."""
    NEEDS_RESET = 64
    """The device can't go on."""
    FAILED = 128
    """The driver has given up."""
