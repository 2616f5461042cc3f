"""Kernel interface: ioctl, owned descriptors, memory mappings, sysfs."""
