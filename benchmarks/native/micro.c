/* SPDX-License-Identifier: MIT */
/* C peers of bulk accesses and of zapping: the loop, and the system call, by themselves. */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* not what others on the machine do meanwhile */
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds for reading count registers into memory, mean of so many times. */
double read_loop_ns(const volatile uint32_t *registers, uint32_t *values, long count, long times)
{
    double start = now_ns();

    for (long i = 0; i < times; i++) {
        for (long j = 0; j < count; j++)
            values[j] = registers[j];
        __asm__ __volatile__("" ::: "memory");
    }
    return (now_ns() - start) / (double)times;
}

/* The same for writing half of the registers and reading the other half, 64-bit values in memory as a program has them. */
double program_loop_ns(volatile uint32_t *registers, uint64_t *values, long count, long times)
{
    double start = now_ns();

    for (long i = 0; i < times; i++) {
        for (long j = 0; j < count / 2; j++)
            registers[j] = (uint32_t)values[j];
        for (long j = count / 2; j < count; j++)
            values[j] = registers[j];
        __asm__ __volatile__("" ::: "memory");
    }
    return (now_ns() - start) / (double)times;
}

/* Write one word of each page. */
void touch(uint8_t *address, size_t size)
{
    for (size_t offset = 0; offset < size; offset += 4096)
        *(volatile uint32_t *)(address + offset) = 1;
}

/* Nanoseconds for replacing what is mapped in a range by nothing, and no more than that. */
double replace_ns(void *address, size_t size)
{
    double start = now_ns();

    if (mmap(address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return -1;
    return now_ns() - start;
}
