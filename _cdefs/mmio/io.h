/* SPDX-License-Identifier: MIT */
/*
 * Register access: exactly one load or store of exactly the width asked, little-endian, with the
 * ordering against ordinary memory that the kernel's readl() and writel() give: what was written to a DMA
 * buffer before is visible to the device when the doorbell rings, and a buffer is read after the
 * register that says it is full.
 */
#ifndef VFIO_USER_IO_H
#define VFIO_USER_IO_H

#include <endian.h>
#include <stdatomic.h>
#include <stdint.h>

_Static_assert(sizeof(void *) == 8, "read64 and write64 are single accesses on 64-bit machines only");

/* x86 keeps loads, and stores, in order among themselves; device memory is uncached there. */
static inline void io_before_write(void)
{
#if defined(__x86_64__)
    __asm__ __volatile__("" ::: "memory");
#elif defined(__aarch64__)
    __asm__ __volatile__("dmb oshst" ::: "memory");
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static inline void io_after_read(void)
{
#if defined(__x86_64__)
    __asm__ __volatile__("" ::: "memory");
#elif defined(__aarch64__)
    __asm__ __volatile__("dmb oshld" ::: "memory");
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Everything before against everything after, as a device sees it: a store is not overtaken by a load either. */
static inline void io_fence(void)
{
#if defined(__aarch64__)
    __asm__ __volatile__("dmb osh" ::: "memory");
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* The accesses of one width; the raw form leaves byte order and fences to a loop's caller. */
#define IO_WIDTH(bits, to_cpu, to_device)                                                       \
    static inline uint##bits##_t io_read##bits(const void *at)                                  \
    {                                                                                           \
        uint##bits##_t value = *(const volatile uint##bits##_t *)at;                            \
        io_after_read();                                                                        \
        return to_cpu(value);                                                                   \
    }                                                                                           \
    static inline void io_write##bits(void *at, uint##bits##_t value)                           \
    {                                                                                           \
        io_before_write();                                                                      \
        *(volatile uint##bits##_t *)at = to_device(value);                                      \
    }

#define IO_SAME(value) (value)
IO_WIDTH(8, IO_SAME, IO_SAME)
IO_WIDTH(16, le16toh, htole16)
IO_WIDTH(32, le32toh, htole32)
IO_WIDTH(64, le64toh, htole64)

static inline uint64_t io_read(const void *at, unsigned width)
{
    switch (width) {
    case 1:
        return io_read8(at);
    case 2:
        return io_read16(at);
    case 4:
        return io_read32(at);
    default:
        return io_read64(at);
    }
}

static inline void io_write(void *at, unsigned width, uint64_t value)
{
    switch (width) {
    case 1:
        io_write8(at, (uint8_t)value);
        break;
    case 2:
        io_write16(at, (uint16_t)value);
        break;
    case 4:
        io_write32(at, (uint32_t)value);
        break;
    default:
        io_write64(at, value);
    }
}

#endif
