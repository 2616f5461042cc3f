/* SPDX-License-Identifier: MIT */
/* Ranges of addresses, put in order and joined, so that one request to the kernel serves for many mappings. */
#include "ledger.h"

#include <stdlib.h>

static int ascending(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;

    return (x->first > y->first) - (x->first < y->first);
}

/* Mappings that were made one after the other are so already, upwards or downwards. */
void core_extents_order(struct extent *extents, size_t count)
{
    size_t up = 1, down = 1;

    while (up < count && extents[up - 1].first <= extents[up].first)
        up++;
    if (up >= count)
        return;
    while (down < count && extents[down - 1].first >= extents[down].first)
        down++;
    if (down < count) {
        qsort(extents, count, sizeof(*extents), ascending);
        return;
    }
    for (size_t i = 0, j = count - 1; i < j; i++, j--) {
        struct extent other = extents[i];

        extents[i] = extents[j];
        extents[j] = other;
    }
}

size_t core_extents_join(struct extent *extents, size_t count, bool merge, Py_ssize_t *different)
{
    size_t runs = 0;
    uint64_t last_first = 0;

    for (size_t i = 0; i < count; i++) {
        if (runs > 0 && extents[i].first == last_first)
            continue;
        (*different)++;
        last_first = extents[i].first;
        if (merge && runs > 0 && extents[i].first - 1 == extents[runs - 1].last)
            extents[runs - 1].last = extents[i].last;
        else
            extents[runs++] = extents[i];
    }
    return runs;
}

PyObject *core_extents_list(const struct extent *extents, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);

    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *run = Py_BuildValue("KK", (unsigned long long)extents[i].first,
                                      (unsigned long long)(extents[i].last - extents[i].first + 1));

        if (run == NULL)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, (Py_ssize_t)i, run);
    }
    return list;
}
