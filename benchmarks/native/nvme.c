/* SPDX-License-Identifier: MIT */
/*
 * Peer of the NVMe driver: the plain polled loop in C that a driver without a framework would be. Its queue is one that the
 * controller was told of; memory and doorbells are used as they lie there, without a lock or a check.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define FAILED (-1.0)
#define PATIENCE_NS 60e9

struct submission {
    uint8_t opcode, flags;
    uint16_t id;
    uint32_t nsid;
    uint64_t reserved, mptr, prp1, prp2, lba;
    uint32_t length, dword13, dword14, dword15;
};

struct completion {
    uint32_t result, high;
    uint16_t head, queue, id, status;
};

struct queue {
    struct submission *submissions;
    volatile struct completion *completions;
    volatile uint32_t *tail_bell, *head_bell;
    uint32_t entries, tail, head, phase;
    uint64_t random;
};

static double now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static uint64_t next_random(struct queue *queue)
{
    queue->random ^= queue->random << 13;
    queue->random ^= queue->random >> 7;
    queue->random ^= queue->random << 17;
    return queue->random;
}

static void submit_read(struct queue *queue, uint16_t id, uint32_t nsid, uint64_t iova, uint64_t places, uint32_t blocks)
{
    queue->submissions[queue->tail] = (struct submission){
        .opcode = 2,
        .id = id,
        .nsid = nsid,
        .prp1 = iova,
        .lba = next_random(queue) % places * blocks,
        .length = blocks - 1,
    };
    queue->tail = queue->tail + 1 == queue->entries ? 0 : queue->tail + 1;
}

static void ring(volatile uint32_t *bell, uint32_t value)
{
    __asm__ __volatile__("" ::: "memory");
    *bell = value;
}

/*
 * Random reads of one 4 KiB page each, `depth` of them in flight: nanoseconds for one. Each pass takes in all that is done,
 * submits as many again, and rings each doorbell once.
 */
double reads_ns(struct queue *queue, uint32_t nsid, uint64_t iova, uint64_t places, uint32_t blocks, uint32_t depth, long count)
{
    double start = now_ns();
    long sent = 0, done = 0;

    for (; sent < (long)depth; sent++)
        submit_read(queue, (uint16_t)sent, nsid, iova + (uint64_t)sent * 4096, places, blocks);
    ring(queue->tail_bell, queue->tail);
    for (long idle = 0; done < count;) {
        uint32_t before = queue->head;
        long had = sent;

        while ((queue->completions[queue->head].status & 1) == queue->phase) {
            uint16_t id = queue->completions[queue->head].id;

            if (queue->completions[queue->head].status >> 1 != 0) {
                errno = EIO;
                return FAILED;
            }
            if (++queue->head == queue->entries) {
                queue->head = 0;
                queue->phase ^= 1;
            }
            done++;
            if (sent < count) {
                submit_read(queue, id, nsid, iova + (uint64_t)id * 4096, places, blocks);
                sent++;
            }
        }
        if (queue->head != before)
            ring(queue->head_bell, queue->head);
        if (sent != had)
            ring(queue->tail_bell, queue->tail);
        if (queue->head != before) {
            idle = 0;
            continue;
        }
        __builtin_ia32_pause();
        if (++idle % 100000 == 0 && now_ns() - start > PATIENCE_NS) {
            errno = ETIMEDOUT;
            return FAILED;
        }
    }
    return (now_ns() - start) / (double)count;
}
