"""The controller registers of NVMe, declared (NVMe Base 2.0, 3.1.3)."""

from __future__ import annotations

import enum

from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Access, Field, RegisterValue

__all__ = [
    "AdminQueueSizes",
    "CapabilitiesRegister",
    "ConfigurationRegister",
    "NvmeRegisters",
    "ShutdownStatus",
    "StatusRegister",
    "VersionRegister",
]


class CapabilitiesRegister(RegisterValue):
    """CAP."""

    mqes = Field(0, 15, doc="Entries of the largest I/O queue, less one.")
    cqr = Field(16, doc="Queues must be physically contiguous.")
    ams = Field(17, 18, doc="Arbitration mechanisms beyond round robin.")
    to = Field(24, 31, doc="Longest time for CSTS.RDY to follow CC.EN, in units of 500 ms.")
    dstrd = Field(32, 35, doc="From one doorbell to the next: 4 << DSTRD bytes.")
    nssrs = Field(36, doc="The register NSSR exists.")
    css = Field(37, 44, doc="Command sets: bit 0 NVM, bit 6 one or more I/O command sets, bit 7 none.")
    bps = Field(45, doc="There are boot partitions.")
    mpsmin = Field(48, 51, doc="Smallest memory page: 4096 << MPSMIN bytes.")
    mpsmax = Field(52, 55, doc="Largest memory page: 4096 << MPSMAX bytes.")
    pmrs = Field(56, doc="There is a persistent memory region.")
    cmbs = Field(57, doc="There is a controller memory buffer.")


class VersionRegister(RegisterValue):
    """VS."""

    ter = Field(0, 7, doc="Tertiary version.")
    mnr = Field(8, 15, doc="Minor version.")
    mjr = Field(16, 31, doc="Major version.")


class ConfigurationRegister(RegisterValue):
    """CC."""

    en = Field(0, doc="The controller processes commands while it is 1.")
    css = Field(4, 6, doc="Command set that is selected.")
    mps = Field(7, 10, doc="Memory page: 4096 << MPS bytes.")
    ams = Field(11, 13, doc="Arbitration mechanism that is selected.")
    shn = Field(14, 15, doc="Shutdown notification: 1 for an orderly one, 2 for an abrupt one.")
    iosqes = Field(16, 19, doc="Size of a submission entry: 1 << IOSQES bytes.")
    iocqes = Field(20, 23, doc="Size of a completion entry: 1 << IOCQES bytes.")


class ShutdownStatus(enum.IntEnum):
    """CSTS.SHST: how far a shutdown is."""

    NORMAL = 0
    """None was asked for."""
    UNDER_WAY = 1
    """It is being done."""
    COMPLETE = 2
    """It is done."""


class StatusRegister(RegisterValue):
    """CSTS."""

    rdy = Field(0, kind=bool, doc="Commands are processed.")
    cfs = Field(1, kind=bool, doc="A fatal error that only a reset ends.")
    shst = Field(2, 3, kind=ShutdownStatus, doc="How far a shutdown is.")
    nssro = Field(4, doc="The subsystem was reset; written as 1 to clear it.")
    pp = Field(5, kind=bool, doc="Processing is paused.")


class AdminQueueSizes(RegisterValue):
    """AQA."""

    asqs = Field(0, 11, doc="Entries of the admin submission queue, less one.")
    acqs = Field(16, 27, doc="Entries of the admin completion queue, less one.")


class NvmeRegisters(RegisterMap):
    """Controller registers of NVMe, in BAR 0; doorbells follow from 0x1000 on."""

    source = "NVM Express Base Specification 2.0, 3.1.3"

    cap = Register(0x00, 64, Access.RO, CapabilitiesRegister, doc="Controller capabilities.", source="3.1.3.1")
    vs = Register(0x08, 32, Access.RO, VersionRegister, doc="Version.", source="3.1.3.2")
    intms = Register(0x0C, 32, doc="Interrupt mask set; not used with MSI-X.", source="3.1.3.3")
    intmc = Register(0x10, 32, doc="Interrupt mask clear; not used with MSI-X.", source="3.1.3.4")
    cc = Register(0x14, 32, kind=ConfigurationRegister, doc="Controller configuration.", source="3.1.3.5")
    csts = Register(0x1C, 32, Access.W1C, StatusRegister, doc="Controller status.", source="3.1.3.6")
    aqa = Register(0x24, 32, kind=AdminQueueSizes, doc="Admin queue attributes.", source="3.1.3.8")
    asq = Register(0x28, 64, doc="Admin submission queue base address.", source="3.1.3.9")
    acq = Register(0x30, 64, doc="Admin completion queue base address.", source="3.1.3.10")
