"""Enumerations of the uAPI: displays of mediated devices."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vfio_user._uapi import lib

__all__ = ["GfxLinkState", "GfxPlaneType"]


class GfxPlaneType(IntFlag):
    """How a display's planes are reached (``VFIO_DEVICE_QUERY_GFX_PLANE``)."""

    PROBE = lib.VFIO_GFX_PLANE_TYPE_PROBE
    """Only tell whether the way named beside it is there."""
    DMABUF = lib.VFIO_GFX_PLANE_TYPE_DMABUF
    """As a dma-buf for each picture."""
    REGION = lib.VFIO_GFX_PLANE_TYPE_REGION
    """As a region of the device."""


class GfxLinkState(IntEnum):
    """What an EDID region says of the monitor's cable."""

    UP = lib.VFIO_DEVICE_GFX_LINK_STATE_UP
    """A monitor is connected."""
    DOWN = lib.VFIO_DEVICE_GFX_LINK_STATE_DOWN
    """None is."""
