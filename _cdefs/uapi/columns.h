/*
 * Arrays of structures by columns, and arrays of addresses: what thousands of requests need beside the system calls, where
 * a Python object for each number would take longer than the kernel does.
 */

/*
 * Set one member, at a byte offset and 4 or 8 bytes wide, of n structures that are stride bytes apart: to values, or, where
 * that is NULL, to first, first + step, ... 0, or -ERANGE when a number needs more than 4 bytes.
 */
int vu_fill_column(void *rows, size_t stride, size_t n, size_t offset, size_t width, const uint64_t *values, uint64_t first,
                   uint64_t step);

/* All bits that are set in any of n numbers. */
uint64_t vu_all_bits(const uint64_t *values, size_t n);

/* Whether one of n numbers is the one before it and step. */
int vu_has_step(const uint64_t *values, size_t n, uint64_t step);
