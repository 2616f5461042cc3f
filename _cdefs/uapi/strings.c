/* The uAPI's texts: cffi reads no #define of one, so they are constants of this library. */
#include <stddef.h>
#include <stdint.h>

#include "vfio.h"

const char VFIO_DEVICE_API_PCI_STRING[] = "vfio-pci";
const char VFIO_DEVICE_API_PLATFORM_STRING[] = "vfio-platform";
const char VFIO_DEVICE_API_AMBA_STRING[] = "vfio-amba";
const char VFIO_DEVICE_API_CCW_STRING[] = "vfio-ccw";
const char VFIO_DEVICE_API_AP_STRING[] = "vfio-ap";
