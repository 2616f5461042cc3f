/* SPDX-License-Identifier: MIT */
/*
 * A window: the range of virtual addresses in which all regions of one device are mapped.
 *
 * The range is reserved (PROT_NONE) for as long as anybody may hold an address in it, and regions are
 * mapped over it at fixed places. Zapping puts PROT_NONE back over all of it, with one system call;
 * reviving maps the regions again where they were. What a touch of a zapped window meets is in fault.c.
 *
 * Plain C without Python. Functions return 0 or a negative errno. Structures are never freed, only
 * used again (a fault handler may look at any of them at any time), so a look at one is always safe.
 */
#ifndef VFIO_USER_WINDOW_H
#define VFIO_USER_WINDOW_H

#include "lock.h"

#include <pthread.h>

#define WINDOW_GRANULE ((size_t)2 << 20) /* kernel's PMD size: alignment of windows, unit of ones */

enum window_state {
    WINDOW_LIVE,     /* regions are mapped (or none are yet) */
    WINDOW_ZAPPED,   /* PROT_NONE; a touch finds ones */
    WINDOW_REVIVING, /* mappings change: a fault maps nothing and tries again */
    WINDOW_CLOSED,   /* as zapped, for ever; reserved until the last view is gone */
    WINDOW_FORKED,   /* as closed: this process is a child of the one that opened it */
};

enum window_flag {
    FLAG_NONE,
    FLAG_TOUCHED,   /* a raw access met zapped memory */
    FLAG_BUS_ERROR, /* the kernel answered an access to live memory with SIGBUS */
};

struct area {
    size_t place, length; /* in the window, bytes */
    int64_t file_offset;  /* in the device's file */
    int prot;
};

struct area_table {
    struct area_table *older; /* a handler may still read it: freed with the window */
    size_t count;
    struct area area[];
};

struct window {
    struct memory_lock lock;
    /* what the fault handler goes by */
    _Atomic uint32_t state;
    _Atomic uint64_t generation; /* of mappings: counts revives, never goes back */
    _Atomic uintptr_t base;      /* 0 when nothing is reserved */
    _Atomic size_t size;
    _Atomic uint32_t flag;
    _Atomic uint32_t ones; /* mappings of ones since the last zap */
    _Atomic(struct area_table *) areas;
    /* handlers in flight, by the parity of the epoch that they came in */
    _Atomic uint32_t epoch;
    _Atomic uint32_t inflight[2];
    _Atomic uint32_t drainers; /* threads asleep until handlers leave */
    /* the rest belongs to callers of the functions below */
    _Atomic int32_t reason;  /* why it was zapped: the caller's number */
    _Atomic uint64_t exports; /* views that are out, times EXPORT_ONE, with the two bits below */
    uint64_t first_generation;
    uint32_t before;       /* state before a zap that may fail */
    pthread_mutex_t mutex; /* map, zap, revive, close: one at a time. Never held while waiting for readers */
    struct window *next;   /* all windows; constant once published */
    struct window *next_free;
};

#define EXPORT_CLOSING 1u  /* no new views; the last one to go releases the range */
#define EXPORT_RELEASED 2u /* the range is gone */
#define EXPORT_ONE 4u

/* First of all windows ever made, for the handler: follow next. */
struct window *window_first(void);

int window_open(size_t size, size_t align, struct window **window);
/* Close if need be, wait for handlers, and let the structure be used again. No views may be out. */
void window_discard(struct window *window);

int window_map(struct window *window, const struct area *area, int fd);
int window_zap(struct window *window, int32_t reason);
/* Zap windows that the caller has locked; adjacent ones with one system call. Sorts the array. */
int window_zap_many(struct window **set, size_t count, int32_t reason);
int window_revive(struct window *window, int fd, int64_t deadline);
/* Take the memory away for good; the device's file is released at once. -EALREADY when closed before. */
int window_close(struct window *window);

/* Views: -EBADF when the window is closed. */
int window_export(struct window *window);
void window_unexport(struct window *window);

/* Is [place, place + length) mapped, with at least these rights, in one or several abutting areas? */
bool window_mapped(struct window *window, size_t place, size_t length, int prot);

/* A handler comes in (the epoch that it must give back) and leaves. Usable in a signal handler. */
uint32_t window_handler_enter(struct window *window);
void window_handler_leave(struct window *window, uint32_t epoch);

/* PROT_NONE over a range, kept out of children and core dumps. */
int window_blank(uintptr_t base, size_t size);

/* The file of ones, 2 MiB of 0xFF; -1 until the first window is open. */
int window_ones_file(void);

#endif
