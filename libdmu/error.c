// SPDX-License-Identifier: LGPL-2.1-or-later
/* Errors, and structures that grow. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

int dmu_fail(struct dmu_error *err, int code, const char *fmt, ...)
{
	va_list args;

	if (err) {
		err->code = code;
		va_start(args, fmt);
		vsnprintf(err->text, sizeof(err->text), fmt, args);
		va_end(args);
	}
	return code;
}

int dmu_copy_in(void *to, size_t size, const void *from)
{
	size_t theirs, i;

	memcpy(&theirs, from, sizeof(theirs));
	if (theirs < sizeof(theirs))
		return -EINVAL;
	for (i = size; i < theirs; i++)
		if (((const char *)from)[i])
			return -E2BIG;
	memset(to, 0, size);
	memcpy(to, from, theirs < size ? theirs : size);
	memcpy(to, &size, sizeof(size));
	return 0;
}

int dmu_copy_out(void *to, const void *from, size_t size)
{
	size_t theirs;

	memcpy(&theirs, to, sizeof(theirs));
	if (theirs < sizeof(theirs))
		return -EINVAL;
	memset(to, 0, theirs);
	memcpy(to, from, theirs < size ? theirs : size);
	memcpy(to, &theirs, sizeof(theirs));
	return 0;
}

int dmu_flags_check(const char *name, uint32_t flags, uint32_t allowed, struct dmu_error *err)
{
	if (flags & ~allowed)
		return dmu_fail(err, -EINVAL, "Device %s: the flags 0x%x are not known here.",
				name, flags & ~allowed);
	return 0;
}
