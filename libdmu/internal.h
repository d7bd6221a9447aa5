/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libdmu internal: what the files of the library share and nobody else sees. */
#ifndef DMU_INTERNAL_H
#define DMU_INTERNAL_H

#include <stdbool.h>

#include "dmu.h"

#pragma GCC visibility push(hidden)

/*
 * dmu_fail - describe a failure
 * @code: a negative errno, returned
 *
 * The sentence is cut to the room there is. @err may be NULL.
 */
int dmu_fail(struct dmu_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * dmu_copy_in - take a sized structure from the caller
 * @to:		ours, of @size bytes, all of which are set
 * @from:	begins with its size (size_t), which may be smaller or larger
 *
 * -EINVAL for a size that holds not even itself, -E2BIG if a field that we do
 * not know is not 0.
 */
int dmu_copy_in(void *to, size_t size, const void *from);

/* dmu_copy_out - the reverse: fills what the caller's structure has room for. */
int dmu_copy_out(void *to, const void *from, size_t size);

/* dmu_spec_check - copies @spec and checks every field of it. */
int dmu_spec_check(struct dmu_spec *to, const struct dmu_spec *spec, struct dmu_error *err);

/* dmu_flags_check - -EINVAL if @flags has others than @allowed. */
int dmu_flags_check(const char *name, uint32_t flags, uint32_t allowed, struct dmu_error *err);

#pragma GCC visibility pop

#endif /* DMU_INTERNAL_H */
