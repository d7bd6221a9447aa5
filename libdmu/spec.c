// SPDX-License-Identifier: LGPL-2.1-or-later
/* Checks of a device's specification before the kernel sees it. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>

#include "internal.h"

/* A word of the table line: printable, and nothing that dm would split at or unescape. */
static bool is_word(const char *text)
{
	if (!text || !*text)
		return false;
	for (; *text; text++)
		if (!isgraph((unsigned char)*text) || *text == '\\')
			return false;
	return true;
}

static int check_name(const char *name, struct dmu_error *err)
{
	if (!name || !*name)
		return dmu_fail(err, -EINVAL, "A device needs a name.");
	if (strlen(name) >= DMU_NAME_MAX || strchr(name, '/'))
		return dmu_fail(err, -EINVAL,
				"Device %s: a name has at most %d bytes and no '/'.", name,
				DMU_NAME_MAX - 1);
	return 0;
}

static int check_identity(const struct dmu_spec *spec, struct dmu_error *err)
{
	int r = check_name(spec->name, err);

	if (r)
		return r;
	if (!is_word(spec->key) || strlen(spec->key) >= DMU_KEY_MAX)
		return dmu_fail(err, -EINVAL,
				"Device %s: the key must be one printable word of at most %d bytes.",
				spec->name, DMU_KEY_MAX - 1);
	if (spec->uuid && (!is_word(spec->uuid) ||
			   strlen(spec->uuid) + sizeof(DMU_UUID_PREFIX) > DMU_UUID_MAX))
		return dmu_fail(err, -EINVAL,
				"Device %s: the uuid must be one printable word of at most %zu bytes.",
				spec->name, DMU_UUID_MAX - sizeof(DMU_UUID_PREFIX));
	return 0;
}

static int check_dests(const struct dmu_spec *spec, struct dmu_error *err)
{
	uint32_t i;

	if (spec->num_dests > DMU_MAX_DESTS || (spec->num_dests && !spec->dests))
		return dmu_fail(err, -EINVAL, "Device %s: %" PRIu32 " destinations, of at most %d.",
				spec->name, spec->num_dests, DMU_MAX_DESTS);
	for (i = 0; i < spec->num_dests; i++) {
		const struct dmu_dest *dest = &spec->dests[i];

		if (!is_word(dest->path))
			return dmu_fail(err, -EINVAL,
					"Device %s: destination %" PRIu32 " needs a path that is one printable word.",
					spec->name, i);
		if ((dest->flags & ~DMU_READ_ONLY) || dest->reserved)
			return dmu_fail(err, -EINVAL,
					"Device %s: destination %s has flags that are not known here.",
					spec->name, dest->path);
	}
	return 0;
}

int dmu_spec_check(struct dmu_spec *to, const struct dmu_spec *spec, struct dmu_error *err)
{
	int r = dmu_copy_in(to, sizeof(*to), spec);

	if (r == -E2BIG)
		return dmu_fail(err, r, "The specification has fields that this libdmu is too old for.");
	if (r)
		return dmu_fail(err, r, "The size field of the specification is not set.");
	r = check_identity(to, err);
	if (r)
		return r;
	if (!to->sectors)
		return dmu_fail(err, -EINVAL, "Device %s: its size is 0.", to->name);
	r = dmu_flags_check(to->name, to->flags, DMU_READ_ONLY | DMU_NO_UDEV_SCAN, err);
	if (r)
		return r;
	if (to->no_daemon > DMU_NO_DAEMON_FAIL || to->write_zeroes > 1)
		return dmu_fail(err, -EINVAL, "Device %s: a feature has a value that is not known here.",
				to->name);
	return check_dests(to, err);
}
