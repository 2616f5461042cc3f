/*
 * System calls with raw addresses. Every one returns a value >= 0, or the negated errno: errno itself is
 * thread state that Python code between the call and the check could change.
 */
int vu_ioctl(int fd, unsigned long request, void *arg);

/*
 * n calls of one request, the i-th with args + i * stride. Stops at the first failure; *done is the number
 * of calls that succeeded.
 */
int vu_ioctl_many(int fd, unsigned long request, void *args, size_t stride, size_t n, size_t *done);

intptr_t vu_mmap(uintptr_t addr, size_t len, int prot, int flags, int fd, int64_t off);
int vu_munmap(uintptr_t addr, size_t len);
int vu_mprotect(uintptr_t addr, size_t len, int prot);
int vu_madvise(uintptr_t addr, size_t len, int advice);
int vu_mlock(uintptr_t addr, size_t len);
int vu_munlock(uintptr_t addr, size_t len);

/*
 * Sleep until a non-blocking eventfd can be read, at most timeout nanoseconds, and read it: the count, or 0 when the time
 * is over or somebody else was quicker. One call: who is woken runs at once.
 */
int64_t vu_eventfd_wait(int fd, int64_t timeout);

/*
 * Read all non-blocking eventfds of an epoll set that can be read; does not sleep. found has room for so many numbers: first
 * how many pairs there are, which must be 0 before, then descriptor and count of each. What it has no room for stays where it
 * is.
 */
int vu_eventfds_read(int epoll, int64_t *found, int room);

int64_t vu_pread(int fd, void *buf, size_t len, int64_t off);
int64_t vu_pwrite(int fd, const void *buf, size_t len, int64_t off);
