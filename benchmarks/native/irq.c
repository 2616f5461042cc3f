/* SPDX-License-Identifier: MIT */
/*
 * Who sends interrupts, and who waits for them in C. A thread notes the time and writes to an eventfd, again and again; each
 * time it waits until the one before was taken, and a little longer, so that the waiter sleeps.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define FAILED (-1.0)

struct sender {
    int fd;
    long count;
    int64_t *stamps;       /* when each was sent */
    _Atomic int64_t taken; /* how many the waiter has seen */
    pthread_t thread;
};

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *send_all(void *argument)
{
    struct sender *sender = argument;

    for (long i = 0; i < sender->count; i++) {
        int64_t end = now_ns() + INT64_C(10000000000);

        while (sender->taken < i && now_ns() < end)
            usleep(50);
        usleep(300);
        sender->stamps[i] = now_ns();
        if (eventfd_write(sender->fd, 1) != 0)
            break;
    }
    return NULL;
}

int sender_start(struct sender *sender)
{
    sender->taken = 0;
    return pthread_create(&sender->thread, NULL, send_all, sender);
}

void sender_join(struct sender *sender)
{
    pthread_join(sender->thread, NULL);
}

/* Nanoseconds from sending to epoll_wait() and read() in C, for each into waits. */
double epoll_waits(struct sender *sender, int64_t *waits)
{
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    double result = 0;

    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, sender->fd, &event) != 0 || sender_start(sender) != 0)
        return FAILED;
    for (long i = 0; i < sender->count && result == 0; i++) {
        eventfd_t value;

        if (epoll_wait(epoll, &event, 1, 10000) != 1 || eventfd_read(sender->fd, &value) != 0)
            result = FAILED;
        waits[i] = now_ns() - sender->stamps[i];
        sender->taken = i + 1;
    }
    sender->taken = sender->count;
    sender_join(sender);
    close(epoll);
    return result;
}

/* Nanoseconds of one epoll_wait() and a read() of each eventfd that can be read; they are as many as is said. */
double reads_many(int epoll, int vectors)
{
    struct epoll_event events[64];
    int64_t begin = now_ns();
    int ready = epoll_wait(epoll, events, 64, 10000);

    if (ready != vectors)
        return FAILED;
    for (int i = 0; i < ready; i++) {
        eventfd_t value;

        if (eventfd_read(events[i].data.fd, &value) != 0)
            return FAILED;
    }
    return (double)(now_ns() - begin);
}
