/*
 * linux/vfio_ccw.h
 *
 * Names, numbers and layouts as of Linux 7.3, in the C that a compiler and cffi's cdef() both read: integer types of
 * <stdint.h>, and constants as one literal each. tests/uapi compares every one with the kernel's own header.
 *
 * The kernel packs these; their fields are aligned by themselves, so sizes and offsets are the same without.
 */

/* Region of the config index: start a subchannel */
#define ORB_AREA_SIZE  12
#define SCSW_AREA_SIZE 12
#define IRB_AREA_SIZE  96
struct ccw_io_region {
	uint8_t orb_area[ORB_AREA_SIZE];
	uint8_t scsw_area[SCSW_AREA_SIZE];
	uint8_t irb_area[IRB_AREA_SIZE];
	uint32_t ret_code;
};

/* Region ASYNC_CMD: halt and clear */
#define VFIO_CCW_ASYNC_CMD_HSCH 0x1
#define VFIO_CCW_ASYNC_CMD_CSCH 0x2

struct ccw_cmd_region {
	uint32_t command;
	uint32_t ret_code;
};

/* Region SCHIB: reading it stores the subchannel-information block */
#define SCHIB_AREA_SIZE 52
struct ccw_schib_region {
	uint8_t schib_area[SCHIB_AREA_SIZE];
};

/* Region CRW: channel report word */
struct ccw_crw_region {
	uint32_t crw;
	uint32_t pad;
};
