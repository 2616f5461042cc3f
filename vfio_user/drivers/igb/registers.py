"""The registers of the 82576 in BAR 0, declared (Intel 82576 GbE Controller Datasheet, chapter 8)."""

from __future__ import annotations

from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Access

__all__ = ["IgbRegisterMap"]


class IgbRegisterMap(RegisterMap):
    """Registers of the 82576, in BAR 0; those of queues for queue 0, the others follow at steps of 0x40."""

    source = "Intel 82576 GbE Controller Datasheet, chapter 8"

    ctrl = Register(0x0000, 32, doc="Device control.", source="8.2.1")
    status = Register(0x0008, 32, Access.RO, doc="Device status.", source="8.2.2")
    eerd = Register(0x0014, 32, doc="EEPROM read: word at bit 2, data at bit 16.")
    ctrl_ext = Register(0x0018, 32, doc="Extended device control.")
    mdic = Register(0x0020, 32, doc="MDI control: registers of the PHY.")
    rctl = Register(0x0100, 32, doc="Receive control.", source="8.10.1")
    tctl = Register(0x0400, 32, doc="Transmit control.")
    icr = Register(0x1500, 32, Access.RC, doc="Interrupt cause.")
    ims = Register(0x1508, 32, doc="Interrupt mask set.")
    imc = Register(0x150C, 32, Access.WO, doc="Interrupt mask clear.")
    gpie = Register(0x1514, 32, doc="General purpose interrupt enable.", source="7.3.2.11")
    eics = Register(0x1520, 32, Access.WO, doc="Extended interrupt cause set: vectors, one bit each.")
    eims = Register(0x1524, 32, doc="Extended interrupt mask set.")
    eimc = Register(0x1528, 32, Access.WO, doc="Extended interrupt mask clear.")
    eiac = Register(0x152C, 32, doc="Extended interrupt auto clear: at the sending of a vector.", source="8.8.5")
    eiam = Register(0x1530, 32, doc="Extended interrupt auto mask.", source="8.8.6")
    eicr = Register(0x1580, 32, Access.RC, doc="Extended interrupt cause.")
    eitr0 = Register(
        0x1680, 32, doc="Microseconds from one interrupt of vector 0 to its next, at bit 2.", source="8.8.12"
    )
    ivar0 = Register(0x1700, 32, doc="Vectors: RX queue n in byte 0, TX queue n in byte 1 of entry n.", source="8.8.13")
    ivar_misc = Register(0x1740, 32, doc="The vector of all other causes, in byte 1.")
    crcerrs = Register(0x4000, 32, Access.RC, doc="Frames with a wrong checksum.")
    mpc = Register(0x4010, 32, Access.RC, doc="Frames lost because the controller's own memory was full.")
    gprc = Register(0x4074, 32, Access.RC, doc="Good frames received.")
    gptc = Register(0x4080, 32, Access.RC, doc="Good frames sent.")
    gorcl = Register(0x4088, 32, Access.RC, doc="Bytes of good frames received, low half; the high one clears both.")
    gotcl = Register(0x4090, 32, Access.RC, doc="Bytes of good frames sent, low half; the high one clears both.")
    rnbc = Register(0x40A0, 32, Access.RC, doc="Frames that found no receive buffer.")
    ruc = Register(0x40A4, 32, Access.RC, doc="Frames of less than 64 bytes.")
    roc = Register(0x40AC, 32, Access.RC, doc="Frames that were too long.")
    rxcsum = Register(0x5000, 32, doc="Receive checksum control.")
    rlpml = Register(0x5004, 32, doc="Receive long packet maximum length, checksum included.")
    ral0 = Register(0x5400, 32, doc="Receive address, low four bytes.")
    rah0 = Register(0x5404, 32, doc="Receive address, high two bytes; valid at bit 31.")
    mrqc = Register(0x5818, 32, doc="Multiple receive queues command.")
    gcr = Register(0x5B00, 32, doc="PCIe control.", source="8.6.1")
    reta0 = Register(0x5C00, 32, doc="Redirection table: 128 bytes, a queue each.")
    rssrk0 = Register(0x5C80, 32, doc="The key of receive-side scaling, 40 bytes.")
    rdbal0 = Register(0xC000, 32, doc="Receive descriptors' base, low half.")
    rdbah0 = Register(0xC004, 32, doc="Receive descriptors' base, high half.")
    rdlen0 = Register(0xC008, 32, doc="Bytes of receive descriptors.")
    srrctl0 = Register(0xC00C, 32, doc="Split and replication receive control.", source="8.10.2")
    rdh0 = Register(0xC010, 32, doc="Receive descriptor head.")
    rdt0 = Register(0xC018, 32, doc="Receive descriptor tail.")
    rxdctl0 = Register(0xC028, 32, doc="Receive descriptor control.", source="8.10.10")
    tdbal0 = Register(0xE000, 32, doc="Transmit descriptors' base, low half.")
    tdbah0 = Register(0xE004, 32, doc="Transmit descriptors' base, high half.")
    tdlen0 = Register(0xE008, 32, doc="Bytes of transmit descriptors.")
    tdh0 = Register(0xE010, 32, doc="Transmit descriptor head.")
    tdt0 = Register(0xE018, 32, doc="Transmit descriptor tail.")
    txdctl0 = Register(0xE028, 32, doc="Transmit descriptor control.", source="8.12.13")
