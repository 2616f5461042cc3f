"""The common configuration of a virtio device on PCI, declared (virtio 1.2, 4.1.4.3)."""

from __future__ import annotations

from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Access, RegisterValue
from vfio_user.drivers.virtio.features import DeviceStatus

__all__ = ["CommonRegisters"]


class CommonRegisters(RegisterMap):
    """Common configuration of a virtio device, where its capability says; queue fields are of the selected queue."""

    source = "Virtual I/O Device (VIRTIO) 1.2, 4.1.4.3"

    device_feature_select = Register(0x00, 32, doc="Which 32 features the next field shows.")
    device_feature = Register(0x04, 32, Access.RO, doc="Features that the device offers.")
    driver_feature_select = Register(0x08, 32, doc="Which 32 features the next field shows.")
    driver_feature = Register(0x0C, 32, doc="Features that the driver has accepted.")
    config_vector = Register(0x10, 16, doc="Vector of configuration changes.")
    num_queues = Register(0x12, 16, Access.RO, doc="How many queues it can have.")
    device_status = Register(0x14, 8, kind=RegisterValue.of_flags(DeviceStatus), doc="How far it is brought up.")
    config_generation = Register(0x15, 8, Access.RO, doc="Changes with the device's configuration.")
    queue_select = Register(0x16, 16, doc="The queue that the fields below are of.")
    queue_size = Register(0x18, 16, doc="Descriptors of the queue.")
    queue_vector = Register(0x1A, 16, doc="Vector of the queue.")
    queue_enable = Register(0x1C, 16, doc="Whether the queue is on.")
    queue_notify_off = Register(0x1E, 16, Access.RO, doc="Where its doorbell is, in units of the multiplier.")
    queue_desc_low = Register(0x20, 32, doc="IOVA of the descriptors.")
    queue_desc_high = Register(0x24, 32, doc="IOVA of the descriptors, upper half.")
    queue_driver_low = Register(0x28, 32, doc="IOVA of the available ring.")
    queue_driver_high = Register(0x2C, 32, doc="IOVA of the available ring, upper half.")
    queue_device_low = Register(0x30, 32, doc="IOVA of the used ring.")
    queue_device_high = Register(0x34, 32, doc="IOVA of the used ring, upper half.")
