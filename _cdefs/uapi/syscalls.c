#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "syscalls.h"

/* A file offset must not be cut where off_t is 32 bits wide. */
_Static_assert(sizeof(off_t) == sizeof(int64_t), "build with 64-bit file offsets");

static int result(int ret)
{
	return ret < 0 ? -errno : ret;
}

int vu_ioctl(int fd, unsigned long request, void *arg)
{
	return result(ioctl(fd, request, arg));
}

int vu_ioctl_many(int fd, unsigned long request, void *args, size_t stride, size_t n, size_t *done)
{
	size_t i;

	for (i = 0; i < n; i++) {
		int ret;

		do {
			ret = vu_ioctl(fd, request, (char *)args + i * stride);
		} while (ret == -EINTR);
		if (ret < 0) {
			*done = i;
			return ret;
		}
	}
	*done = n;
	return 0;
}

intptr_t vu_mmap(uintptr_t addr, size_t len, int prot, int flags, int fd, int64_t off)
{
	void *place = mmap((void *)addr, len, prot, flags, fd, (off_t)off);

	return place == MAP_FAILED ? -(intptr_t)errno : (intptr_t)place;
}

int vu_munmap(uintptr_t addr, size_t len)
{
	return result(munmap((void *)addr, len));
}

int vu_mprotect(uintptr_t addr, size_t len, int prot)
{
	return result(mprotect((void *)addr, len, prot));
}

int vu_madvise(uintptr_t addr, size_t len, int advice)
{
	return result(madvise((void *)addr, len, advice));
}

int vu_mlock(uintptr_t addr, size_t len)
{
	return result(mlock((void *)addr, len));
}

int vu_munlock(uintptr_t addr, size_t len)
{
	return result(munlock((void *)addr, len));
}

int64_t vu_eventfd_wait(int fd, int64_t timeout)
{
	struct timespec limit = {timeout / 1000000000, timeout % 1000000000};
	struct pollfd poll = {.fd = fd, .events = POLLIN};
	int ready = ppoll(&poll, 1, &limit, NULL);
	uint64_t count;

	if (ready <= 0)
		return result(ready);
	if (read(fd, &count, sizeof(count)) != sizeof(count))
		return errno == EAGAIN ? 0 : -errno;
	return count > INT64_MAX ? INT64_MAX : (int64_t)count;
}

#define EVENTS_AT_ONCE 64

int vu_eventfds_read(int epoll, int64_t *found, int room)
{
	struct epoll_event events[EVENTS_AT_ONCE];
	int pairs = (room - 1) / 2, n = 0, ready, most, i;

	do {
		most = pairs - n < EVENTS_AT_ONCE ? pairs - n : EVENTS_AT_ONCE;
		ready = most > 0 ? epoll_wait(epoll, events, most, 0) : 0;
		for (i = 0; i < ready; i++) {
			uint64_t count;

			if (read(events[i].data.fd, &count, sizeof(count)) != sizeof(count))
				continue; /* somebody else was quicker */
			found[1 + 2 * n] = events[i].data.fd;
			found[2 + 2 * n++] = count > INT64_MAX ? INT64_MAX : (int64_t)count;
			found[0] = n;
		}
	} while (ready == most && most > 0);
	return ready < 0 && errno != EINTR ? -errno : 0;
}

int64_t vu_pread(int fd, void *buf, size_t len, int64_t off)
{
	ssize_t ret = pread(fd, buf, len, (off_t)off);

	return ret < 0 ? -(int64_t)errno : (int64_t)ret;
}

int64_t vu_pwrite(int fd, const void *buf, size_t len, int64_t off)
{
	ssize_t ret = pwrite(fd, buf, len, (off_t)off);

	return ret < 0 ? -(int64_t)errno : (int64_t)ret;
}
