/* SPDX-License-Identifier: MIT */
/* What window.c and zap.c share. */
#ifndef VFIO_USER_ZAP_H
#define VFIO_USER_ZAP_H

#include "window.h"

/* Children and core dumps must not have device memory. MAP_FIXED drops both flags: call it after each. */
void window_keep_out(uintptr_t base, size_t size);

/* Map an area of the device's file at its place. */
int window_area_mmap(uintptr_t base, const struct area *area, int fd);

/* -EBADF when the window is closed, or the parent's. */
int window_closed_error(struct window *window);

/* Wait for the handlers that may have seen the state before the last change; -ETIMEDOUT. Window's mutex held. */
int window_drain_handlers(struct window *window, int64_t deadline);

#endif
