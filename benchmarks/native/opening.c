/* SPDX-License-Identifier: MIT */
/* Peer of opening a device through a container: the same requests, one after the other, until a register can be read. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../_cdefs/uapi/vfio.h"

#define FAILED (-1.0)
#define CONFIG_REGION 7
#define NUM_REGIONS 9
#define NUM_IRQS 5

static double now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ask_device(int device, uint32_t *value)
{
    struct vfio_device_info info = {.argsz = sizeof(info)};
    uint8_t config[4096];
    void *bar = MAP_FAILED;
    size_t size = 0;

    if (ioctl(device, VFIO_DEVICE_GET_INFO, &info) != 0)
        return -1;
    for (uint32_t index = 0; index < NUM_REGIONS; index++) {
        uint8_t reply[256] = {0};
        struct vfio_region_info *region = (struct vfio_region_info *)reply;

        region->argsz = sizeof(reply);
        region->index = index;
        if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, region) != 0) {
            if (errno == EINVAL)
                continue;
            return -1;
        }
        if (index == 0) {
            size = region->size;
            bar = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)region->offset);
        }
        if (index == CONFIG_REGION && pread(device, config, sizeof(config), (off_t)region->offset) < 256)
            return -1;
    }
    for (uint32_t index = 0; index < NUM_IRQS; index++) {
        struct vfio_irq_info irq = {.argsz = sizeof(irq), .index = index};

        if (ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq) != 0)
            return -1;
    }
    if (bar == MAP_FAILED)
        return -1;
    *value = *(volatile uint32_t *)((uint8_t *)bar + 8);
    munmap(bar, size);
    return 0;
}

/* Nanoseconds from nothing to a register's value; everything is closed again, which is not counted. */
double open_ns(const char *name, int group_number, uint32_t *value)
{
    double start = now_ns(), end;
    char path[64];
    int container, group, device = -1, good = 0;

    snprintf(path, sizeof(path), "/dev/vfio/%d", group_number);
    container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    group = open(path, O_RDWR | O_CLOEXEC);
    if (container >= 0 && group >= 0) {
        struct vfio_group_status status = {.argsz = sizeof(status)};
        uint8_t reply[4096] = {0};
        struct vfio_iommu_type1_info *info = (struct vfio_iommu_type1_info *)reply;

        info->argsz = sizeof(reply);
        good = ioctl(container, VFIO_GET_API_VERSION) == 0 && ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0 &&
               (status.flags & VFIO_GROUP_FLAGS_VIABLE) != 0 && ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0 &&
               ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0 &&
               (device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name)) >= 0 &&
               ioctl(container, VFIO_IOMMU_GET_INFO, info) == 0 && ask_device(device, value) == 0;
    }
    end = now_ns();
    close(device);
    close(group);
    close(container);
    return good ? end - start : FAILED;
}
