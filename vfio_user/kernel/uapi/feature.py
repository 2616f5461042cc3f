"""Enumerations of the uAPI: features of devices, and the states of migration."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vfio_user._uapi import lib

__all__ = [
    "DeviceFeature",
    "FeatureOperation",
    "MigrationFlags",
    "MigrationState",
]


class FeatureOperation(IntFlag):
    """What ``VFIO_DEVICE_FEATURE`` shall do."""

    GET = lib.VFIO_DEVICE_FEATURE_GET
    """Read."""
    SET = lib.VFIO_DEVICE_FEATURE_SET
    """Write."""
    PROBE = lib.VFIO_DEVICE_FEATURE_PROBE
    """Only tell whether the operations named beside it are there."""


class DeviceFeature(IntEnum):
    """Features of a device (``VFIO_DEVICE_FEATURE``)."""

    PCI_VF_TOKEN = lib.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN
    """Token that users of the virtual functions have to know; 16 bytes, SET."""
    MIGRATION = lib.VFIO_DEVICE_FEATURE_MIGRATION
    """What migration can do; GET."""
    MIG_DEVICE_STATE = lib.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
    """State of migration; GET and SET."""
    LOW_POWER_ENTRY = lib.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY
    """Allow low power until the next access; SET."""
    LOW_POWER_ENTRY_WITH_WAKEUP = lib.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP
    """The same, with an eventfd that says when it ends; SET."""
    LOW_POWER_EXIT = lib.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT
    """End low power; SET."""
    DMA_LOGGING_START = lib.VFIO_DEVICE_FEATURE_DMA_LOGGING_START
    """Begin to log writes of the device; SET."""
    DMA_LOGGING_STOP = lib.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP
    """Stop the log; SET."""
    DMA_LOGGING_REPORT = lib.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT
    """Read and clear the log; GET."""
    MIG_DATA_SIZE = lib.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
    """Bytes that STOP_COPY would move; GET."""
    BUS_MASTER = lib.VFIO_DEVICE_FEATURE_BUS_MASTER
    """Bus mastering, where there is no configuration space; SET."""
    DMA_BUF = lib.VFIO_DEVICE_FEATURE_DMA_BUF
    """A dma-buf of parts of a region; GET gives its descriptor."""
    MIG_PRECOPY_INFOV2 = lib.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2
    """Make the flags of ``VFIO_MIG_GET_PRECOPY_INFO`` valid; SET."""
    ZPCI_ERROR = lib.VFIO_DEVICE_FEATURE_ZPCI_ERROR
    """Record of the last error, on s390; GET."""


class MigrationFlags(IntFlag):
    """What migration of a device can do."""

    STOP_COPY = lib.VFIO_MIGRATION_STOP_COPY
    """Its state can be moved while it is stopped."""
    P2P = lib.VFIO_MIGRATION_P2P
    """It has the states in which it does no peer-to-peer DMA of its own."""
    PRE_COPY = lib.VFIO_MIGRATION_PRE_COPY
    """Its state can be moved while it runs."""


class MigrationState(IntEnum):
    """States of migration."""

    ERROR = lib.VFIO_DEVICE_STATE_ERROR
    """Only a reset leads out of it."""
    STOP = lib.VFIO_DEVICE_STATE_STOP
    """It does nothing, and its state does not change."""
    RUNNING = lib.VFIO_DEVICE_STATE_RUNNING
    """It runs."""
    STOP_COPY = lib.VFIO_DEVICE_STATE_STOP_COPY
    """Stopped, and its state can be read."""
    RESUMING = lib.VFIO_DEVICE_STATE_RESUMING
    """Stopped, and its state can be written."""
    RUNNING_P2P = lib.VFIO_DEVICE_STATE_RUNNING_P2P
    """It runs, and begins no peer-to-peer DMA."""
    PRE_COPY = lib.VFIO_DEVICE_STATE_PRE_COPY
    """It runs, and its state can be read."""
    PRE_COPY_P2P = lib.VFIO_DEVICE_STATE_PRE_COPY_P2P
    """Both of the above."""
