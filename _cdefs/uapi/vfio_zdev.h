/*
 * linux/vfio_zdev.h
 *
 * Names, numbers and layouts as of Linux 7.3, in the C that a compiler and cffi's cdef() both read: integer types of
 * <stdint.h>, and constants as one literal each. tests/uapi compares every one with the kernel's own header.
 *
 * Contents of the capabilities VFIO_DEVICE_INFO_CAP_ZPCI_*; the version in the header says how many fields there are.
 */

struct vfio_device_info_cap_zpci_base {
	struct vfio_info_cap_header header;
	uint64_t start_dma;
	uint64_t end_dma;
	uint16_t pchid;
	uint16_t vfn;
	uint16_t fmb_length;
	uint8_t pft;
	uint8_t gid;
	uint32_t fh;
	uint32_t ccdf_err_length;
};

#define VFIO_DEVICE_INFO_ZPCI_FLAG_REFRESH 1
struct vfio_device_info_cap_zpci_group {
	struct vfio_info_cap_header header;
	uint64_t dasm;
	uint64_t msi_addr;
	uint64_t flags;
	uint16_t mui;
	uint16_t noi;
	uint16_t maxstbl;
	uint8_t version;
	uint8_t reserved;
	uint16_t imaxstbl;
};

struct vfio_device_info_cap_zpci_util {
	struct vfio_info_cap_header header;
	uint32_t size;
	uint8_t util_str[];
};

struct vfio_device_info_cap_zpci_pfip {
	struct vfio_info_cap_header header;
	uint32_t size;
	uint8_t pfip[];
};
