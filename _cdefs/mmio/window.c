/* SPDX-License-Identifier: MIT */
/* Windows: reserve, map, close; children of a fork. zap.c has what changes mappings in between. See window.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "window.h"

#include "fault.h"
#include "zap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define RELEASE_NS INT64_C(10000000000)

/* Guards the list, the free structures and the file of ones. Taken before a window's own mutex, never after. */
static pthread_mutex_t windows_mutex = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(struct window *) windows;
static struct window *windows_free;
static uintptr_t last_base; /* of the window opened last: the next one is tried just below */
static int ones_file = -1;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

struct window *window_first(void)
{
    return atomic_load(&windows);
}

int window_ones_file(void)
{
    return ones_file;
}

/* ---- open ---- */

static int make_ones_file(void)
{
    static unsigned char ones[64 << 10];
    int fd = memfd_create("vfio_user ones", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    memset(ones, 0xFF, sizeof(ones));
    for (size_t done = 0; done < WINDOW_GRANULE; done += sizeof(ones)) {
        if (pwrite(fd, ones, sizeof(ones), (off_t)done) != (ssize_t)sizeof(ones)) {
            int error = errno != 0 ? -errno : -ENOSPC;

            close(fd);
            return error;
        }
    }
    fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    ones_file = fd;
    return 0;
}

static uintptr_t reserve_at(uintptr_t at, size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    void *got = mmap((void *)at, size, PROT_NONE, flags, -1, 0);

    if (got == MAP_FAILED)
        return 0;
    if ((uintptr_t)got == at)
        return at;
    munmap(got, size); /* a kernel before 4.17 takes the address as a hint */
    return 0;
}

/* Reserve size bytes at a multiple of align; next to another window where that is possible, for merging. */
static int reserve(size_t size, size_t align, uintptr_t *base)
{
    uintptr_t below = last_base - size;

    *base = 0;
    if (last_base > size && below % align == 0)
        *base = reserve_at(below, size);
    if (*base == 0) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *got = mmap(NULL, size + align, PROT_NONE, flags, -1, 0);

        if (got == MAP_FAILED)
            return -errno;
        uintptr_t start = (uintptr_t)got, aligned = (start + align - 1) & ~(uintptr_t)(align - 1);

        if (aligned > start)
            munmap(got, aligned - start);
        munmap((void *)(aligned + size), start + align - aligned);
        *base = aligned;
    }
    window_keep_out(*base, size);
    last_base = *base;
    return 0;
}

static void fork_setup(void);

static struct window *structure_take(void)
{
    struct window *window = windows_free;

    if (window != NULL) {
        windows_free = window->next_free;
        return window;
    }
    window = aligned_alloc(LOCK_LINE, sizeof(*window));
    if (window == NULL)
        return NULL;
    memset(window, 0, sizeof(*window));
    lock_init(&window->lock);
    pthread_mutex_init(&window->mutex, NULL);
    window->next = atomic_load(&windows);
    atomic_store(&windows, window);
    return window;
}

int window_open(size_t size, size_t align, struct window **out)
{
    uintptr_t base;
    int error = 0;

    size = (size + WINDOW_GRANULE - 1) & ~(WINDOW_GRANULE - 1);
    pthread_once(&fork_once, fork_setup);
    pthread_mutex_lock(&windows_mutex);
    if (ones_file < 0)
        error = make_ones_file();
    struct window *window = error != 0 ? NULL : structure_take();

    if (error == 0 && window == NULL)
        error = -ENOMEM;
    if (error == 0)
        error = reserve(size, align, &base);
    if (error != 0) {
        if (window != NULL) {
            window->next_free = windows_free;
            windows_free = window;
        }
        pthread_mutex_unlock(&windows_mutex);
        return error;
    }
    pthread_mutex_unlock(&windows_mutex);
    window->first_generation = atomic_fetch_add(&window->generation, 1) + 1;
    atomic_store(&window->flag, FLAG_NONE);
    atomic_store(&window->reason, 0);
    atomic_store(&window->ones, 0);
    atomic_store(&window->exports, 0);
    atomic_store(&window->state, WINDOW_LIVE);
    lock_reset(&window->lock);
    atomic_store(&window->size, size);
    atomic_store(&window->base, base); /* last: from here on the handler knows it */
    *out = window;
    return 0;
}

/* ---- map ---- */

static bool overlaps(const struct area_table *table, const struct area *area)
{
    for (size_t i = 0; table != NULL && i < table->count; i++) {
        const struct area *other = &table->area[i];

        if (area->place < other->place + other->length && other->place < area->place + area->length)
            return true;
    }
    return false;
}

/* A table with one more area, sorted by place; the old one stays for handlers that read it. */
static struct area_table *table_with(struct area_table *old, const struct area *area)
{
    size_t count = old == NULL ? 0 : old->count, i = 0;
    struct area_table *table = malloc(sizeof(*table) + (count + 1) * sizeof(*area));

    if (table == NULL)
        return NULL;
    table->older = old;
    table->count = count + 1;
    for (; i < count && old->area[i].place < area->place; i++)
        table->area[i] = old->area[i];
    table->area[i] = *area;
    for (; i < count; i++)
        table->area[i + 1] = old->area[i];
    return table;
}

int window_map(struct window *window, const struct area *area, int fd)
{
    pthread_mutex_lock(&window->mutex);
    struct area_table *old = atomic_load(&window->areas), *table = NULL;
    int error = window_closed_error(window);

    if (error == 0 && atomic_load(&window->state) != WINDOW_LIVE)
        error = -EBUSY;
    if (error == 0 && overlaps(old, area))
        error = -EEXIST;
    if (error == 0 && (table = table_with(old, area)) == NULL)
        error = -ENOMEM;
    if (error == 0)
        error = window_area_mmap(atomic_load(&window->base), area, fd);
    if (error == 0)
        atomic_store(&window->areas, table);
    else
        free(table);
    pthread_mutex_unlock(&window->mutex);
    return error;
}

bool window_mapped(struct window *window, size_t place, size_t length, int prot)
{
    pthread_mutex_lock(&window->mutex);
    const struct area_table *table = atomic_load(&window->areas);
    size_t reached = place, end = place + length;

    for (size_t i = 0; table != NULL && i < table->count && reached < end; i++) {
        const struct area *area = &table->area[i];

        if (area->place <= reached && reached < area->place + area->length && (area->prot & prot) == prot)
            reached = area->place + area->length;
    }
    pthread_mutex_unlock(&window->mutex);
    return reached >= end;
}

/* ---- close and views ---- */

/* Give the range back. EXPORT_RELEASED is ours: nobody else does this. Mutex held. */
static void release_range(struct window *window)
{
    uintptr_t base = atomic_load(&window->base);
    size_t size = atomic_load(&window->size);

    atomic_store(&window->state, WINDOW_REVIVING); /* handlers map nothing from here on */
    int error = window_drain_handlers(window, lock_now() + RELEASE_NS);

    atomic_store(&window->base, 0);
    atomic_store(&window->size, 0);
    if (error == 0) /* else a handler hangs: better lose the addresses than let it map into them */
        munmap((void *)base, size);
    atomic_store(&window->state, WINDOW_CLOSED);
}

/* If the window is closing and no view is out, be the one that releases the range. */
static bool exports_finish(struct window *window)
{
    uint64_t none = EXPORT_CLOSING;

    return atomic_compare_exchange_strong(&window->exports, &none, EXPORT_CLOSING | EXPORT_RELEASED);
}

int window_close(struct window *window)
{
    int error = 0;

    pthread_mutex_lock(&window->mutex);
    if ((atomic_load(&window->exports) & EXPORT_CLOSING) != 0) {
        pthread_mutex_unlock(&window->mutex);
        return -EALREADY;
    }
    if (atomic_load(&window->state) != WINDOW_FORKED)
        atomic_store(&window->state, WINDOW_CLOSED);
    lock_gate_set(&window->lock, GATE_CLOSED);
    atomic_fetch_or(&window->exports, EXPORT_CLOSING);
    if (exports_finish(window)) {
        release_range(window);
    } else {
        /* views are out: the addresses stay, the device's file must go */
        error = window_blank(atomic_load(&window->base), atomic_load(&window->size));
        atomic_store(&window->ones, 0);
    }
    pthread_mutex_unlock(&window->mutex);
    return error;
}

int window_export(struct window *window)
{
    uint64_t exports = atomic_load(&window->exports);

    do {
        if ((exports & EXPORT_CLOSING) != 0)
            return -EBADF;
    } while (!atomic_compare_exchange_weak(&window->exports, &exports, exports + EXPORT_ONE));
    return 0;
}

void window_unexport(struct window *window)
{
    atomic_fetch_sub(&window->exports, EXPORT_ONE);
    if (exports_finish(window)) {
        pthread_mutex_lock(&window->mutex);
        release_range(window);
        pthread_mutex_unlock(&window->mutex);
    }
}

void window_discard(struct window *window)
{
    window_close(window);
    struct area_table *table = atomic_exchange(&window->areas, NULL);

    while (table != NULL) {
        struct area_table *older = table->older;

        free(table);
        table = older;
    }
    pthread_mutex_lock(&windows_mutex);
    window->next_free = windows_free;
    windows_free = window;
    pthread_mutex_unlock(&windows_mutex);
}

/* ---- fork ---- */

static void fork_prepare(void)
{
    pthread_mutex_lock(&windows_mutex);
    lock_fork_prepare();
}

static void fork_parent(void)
{
    lock_fork_parent();
    pthread_mutex_unlock(&windows_mutex);
}

/*
 * In the child: device memory is not there (MADV_DONTFORK). Reserve the ranges again, so that nothing else
 * of the child lands in them, and let raw views read ones and accessors raise.
 */
static void fork_child(void)
{
    lock_fork_child();
    fault_fork_child();
    for (struct window *window = window_first(); window != NULL; window = window->next) {
        pthread_mutex_init(&window->mutex, NULL);
        atomic_store(&window->inflight[0], 0);
        atomic_store(&window->inflight[1], 0);
        atomic_store(&window->drainers, 0);
        if (atomic_load(&window->base) == 0)
            continue;
        atomic_store(&window->state, WINDOW_FORKED);
        atomic_fetch_or(&window->lock.gate, GATE_FORKED);
        window_blank(atomic_load(&window->base), atomic_load(&window->size));
    }
    pthread_mutex_init(&windows_mutex, NULL);
}

static void fork_setup(void)
{
    pthread_atfork(fork_prepare, fork_parent, fork_child);
}
