/* SPDX-License-Identifier: MIT */
/* C peers on the real /dev/vfio: the bare mmap(), the bare ioctl(), and one ioctl() for each mapping. */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "../../_cdefs/uapi/iommufd.h"
#include "../../_cdefs/uapi/vfio.h"

#define PAGE UINT64_C(4096)
#define HUGE_PAGE (UINT64_C(2) << 20)
#define FAILED (-1.0)

static double now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* ---- device memory ---- */

static void touch(const volatile uint8_t *address, size_t size)
{
    for (size_t offset = 0; offset < size; offset += PAGE)
        (void)*(const volatile uint32_t *)(address + offset);
}

/* Nanoseconds for reading one word of each page. */
double touch_ns(const void *address, size_t size)
{
    double start = now_ns();

    touch(address, size);
    return now_ns() - start;
}

/*
 * The kernel maps where there is room, next to what is mapped already, and knows nothing of huge pages then. A hole that
 * was left by an aligned mapping of the same size suits by chance; put a page into each such hole, for good.
 */
static int avoid_luck(int device, uint64_t file_offset, size_t size)
{
    for (int holes = 0; holes < 16; holes++) {
        uint8_t *address = mmap(NULL, size, PROT_READ, MAP_SHARED, device, (off_t)file_offset);

        if (address == MAP_FAILED || munmap(address, size) != 0)
            return -1;
        if ((uintptr_t)address % HUGE_PAGE != 0)
            return 0;
        address = mmap(address + size - PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (address == MAP_FAILED)
            return -1;
    }
    return 0; /* this kernel means it */
}

/* Nanoseconds for mapping a region where the kernel likes to, and reading one word of each page; *address is where. */
double map_and_touch_ns(int device, uint64_t file_offset, size_t size, void **address)
{
    if (avoid_luck(device, file_offset, size) != 0)
        return FAILED;
    double start = now_ns();

    *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)file_offset);
    if (*address == MAP_FAILED)
        return FAILED;
    touch(*address, size);
    return now_ns() - start;
}

/* Nanoseconds for replacing what is mapped in a range by nothing. */
double replace_ns(void *address, size_t size)
{
    double start = now_ns();

    if (mmap(address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return FAILED;
    return now_ns() - start;
}

double unmap_ns(void *address, size_t size)
{
    double start = now_ns();

    return munmap(address, size) == 0 ? now_ns() - start : FAILED;
}

/* ---- resets ---- */

double reset_ns(int device)
{
    double start = now_ns();

    return ioctl(device, VFIO_DEVICE_RESET) == 0 ? now_ns() - start : FAILED;
}

double hot_reset_ns(int device, const int32_t *groups, uint32_t count)
{
    uint32_t argument[3 + 8] = {(3 + count) * sizeof(uint32_t), 0, count};
    double start;

    if (count > 8)
        return FAILED;
    memcpy(argument + 3, groups, count * sizeof(*groups));
    start = now_ns();
    return ioctl(device, VFIO_DEVICE_PCI_HOT_RESET, argument) == 0 ? now_ns() - start : FAILED;
}

/* ---- mappings: in the address space of an iommufd, or without one (0) in a container ---- */

static int map_range(int fd, uint32_t ioas, uint64_t vaddr, uint64_t size, uint64_t iova)
{
    struct iommu_ioas_map in_ioas = {
        .size = sizeof(in_ioas),
        .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        .ioas_id = ioas,
        .user_va = vaddr,
        .length = size,
        .iova = iova,
    };
    struct vfio_iommu_type1_dma_map in_container = {
        .argsz = sizeof(in_container),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = vaddr,
        .iova = iova,
        .size = size,
    };

    return ioas != 0 ? ioctl(fd, IOMMU_IOAS_MAP, &in_ioas) : ioctl(fd, VFIO_IOMMU_MAP_DMA, &in_container);
}

/* Unmap a range, of size 0 all there is; true when the kernel unmapped as much as was expected. */
static int unmapped(int fd, uint32_t ioas, uint64_t iova, uint64_t size, uint64_t expected)
{
    struct iommu_ioas_unmap in_ioas = {
        .size = sizeof(in_ioas),
        .ioas_id = ioas,
        .iova = iova,
        .length = size != 0 ? size : UINT64_MAX,
    };
    struct vfio_iommu_type1_dma_unmap in_container = {
        .argsz = sizeof(in_container),
        .flags = size != 0 ? 0 : VFIO_DMA_UNMAP_FLAG_ALL,
        .iova = iova,
        .size = size,
    };

    if (ioas != 0)
        return ioctl(fd, IOMMU_IOAS_UNMAP, &in_ioas) == 0 && in_ioas.length == expected;
    return ioctl(fd, VFIO_IOMMU_UNMAP_DMA, &in_container) == 0 && in_container.size == expected;
}

/* Nanoseconds for mapping pages by one request each, at one IOVA after the other. */
double map_pages_ns(int fd, uint32_t ioas, const uint64_t *vaddrs, long count, uint64_t iova)
{
    double start = now_ns();

    for (long i = 0; i < count; i++)
        if (map_range(fd, ioas, vaddrs[i], PAGE, iova + (uint64_t)i * PAGE) != 0)
            return FAILED;
    return now_ns() - start;
}

/* Nanoseconds for unmapping them by one request each. */
double unmap_pages_ns(int fd, uint32_t ioas, long count, uint64_t iova)
{
    double start = now_ns();

    for (long i = 0; i < count; i++)
        if (!unmapped(fd, ioas, iova + (uint64_t)i * PAGE, PAGE, PAGE))
            return FAILED;
    return now_ns() - start;
}

/* Nanoseconds for unmapping all there is, so many pages, by one request. */
double unmap_all_ns(int fd, uint32_t ioas, long count)
{
    double start = now_ns();

    return unmapped(fd, ioas, 0, 0, (uint64_t)count * PAGE) ? now_ns() - start : FAILED;
}

/* Nanoseconds for mapping a range by one request, and unmapping it by another. */
double map_and_unmap_ns(int fd, uint32_t ioas, uint64_t vaddr, uint64_t size, uint64_t iova)
{
    double start = now_ns();

    if (map_range(fd, ioas, vaddr, size, iova) != 0 || !unmapped(fd, ioas, iova, size, size))
        return FAILED;
    return now_ns() - start;
}
