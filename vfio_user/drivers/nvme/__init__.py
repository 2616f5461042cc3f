"""NVMe controllers in user space (NVMe Base 2.0 over PCIe, NVM command set 1.0)."""
