/* SPDX-License-Identifier: MIT */
/* Built with room for 12 threads: the next one is refused by -EAGAIN, and let in when another has ended. */
#include "lock.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#define ROOM 12

static struct memory_lock lock;
static pthread_barrier_t inside, leave;

static void *holder(void *unused)
{
    (void)unused;
    if (lock_acquire(&lock) != 0)
        return (void *)1;
    pthread_barrier_wait(&inside);
    pthread_barrier_wait(&leave);
    return lock_release(&lock) == 0 ? NULL : (void *)2;
}

static void *attempt(void *result)
{
    struct reader_slot *slot;

    *(int *)result = lock_enter(&lock, &slot);
    if (*(int *)result == LOCK_ENTERED)
        lock_leave(&lock, slot);
    return NULL;
}

static int try_in_thread(void)
{
    pthread_t thread;
    int result = -1;

    pthread_create(&thread, NULL, attempt, &result);
    pthread_join(thread, NULL);
    return result;
}

int main(void)
{
    pthread_t threads[ROOM];
    struct lock_holder holders[ROOM];
    void *outcome;
    int bad = 0;

    lock_init(&lock);
    pthread_barrier_init(&inside, NULL, ROOM + 1);
    pthread_barrier_init(&leave, NULL, ROOM + 1);
    for (int i = 0; i < ROOM; i++)
        pthread_create(&threads[i], NULL, holder, NULL);
    pthread_barrier_wait(&inside);

    int full = try_in_thread();
    size_t count = lock_holders(&lock, holders, ROOM);

    pthread_barrier_wait(&leave);
    for (int i = 0; i < ROOM; i++) {
        pthread_join(threads[i], &outcome);
        bad += outcome != NULL;
    }
    int later = try_in_thread();

    printf("full %d later %d holders %zu bad %d\n", full, later, count, bad);
    return !(full == -EAGAIN && later == LOCK_ENTERED && count == ROOM && bad == 0);
}
