#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "columns.h"

int vu_fill_column(void *rows, size_t stride, size_t n, size_t offset, size_t width, const uint64_t *values, uint64_t first,
                   uint64_t step)
{
	char *member = (char *)rows + offset;

	for (size_t i = 0; i < n; i++, member += stride) {
		uint64_t value = values != NULL ? values[i] : first + i * step;

		if (width == sizeof(uint64_t)) {
			memcpy(member, &value, sizeof(value));
		} else {
			uint32_t narrow = (uint32_t)value;

			if (narrow != value)
				return -ERANGE;
			memcpy(member, &narrow, sizeof(narrow));
		}
	}
	return 0;
}

uint64_t vu_all_bits(const uint64_t *values, size_t n)
{
	uint64_t bits = 0;

	for (size_t i = 0; i < n; i++)
		bits |= values[i];
	return bits;
}

int vu_has_step(const uint64_t *values, size_t n, uint64_t step)
{
	for (size_t i = 1; i < n; i++)
		if (values[i] - values[i - 1] == step)
			return 1;
	return 0;
}
