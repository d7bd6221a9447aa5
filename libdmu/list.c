// SPDX-License-Identifier: LGPL-2.1-or-later
/* What there is: devices of our target, and the target itself. */
#include <errno.h>
#include <stdlib.h>

#include "dm.h"

struct names {
	char **name;
	size_t count;
};

static void names_free(struct names *names)
{
	while (names->count)
		free(names->name[--names->count]);
	free(names->name);
}

static int names_add(struct names *names, const char *name)
{
	char **grown = reallocarray(names->name, names->count + 1, sizeof(*grown));

	if (!grown)
		return -ENOMEM;
	names->name = grown;
	grown[names->count] = strdup(name);
	if (!grown[names->count])
		return -ENOMEM;
	names->count++;
	return 0;
}

/* Copies the names of all dm devices, so that the lock is free for the callback. */
static int names_read(struct names *names, struct dmu_error *err)
{
	const struct dm_names *at;
	struct dmu_dm dm;
	int r = dmu_dm_begin(&dm, DM_DEVICE_LIST, NULL, "list the devices", err);

	if (r)
		return r;
	r = dmu_dm_run(&dm);
	at = r ? NULL : dm_task_get_names(dm.task);
	while (at && at->dev) {
		r = names_add(names, at->name);
		if (r) {
			r = dmu_fail(err, r, "There is no memory for a list of devices.");
			break;
		}
		at = at->next ? (const void *)((const char *)at + at->next) : NULL;
	}
	return dmu_dm_end(&dm, r);
}

/* Whether the live table of @name is one target of ours. */
static bool is_ours(const char *name)
{
	uint64_t start, sectors;
	char *type = NULL, *params = NULL;
	struct dmu_dm dm;
	bool ours = false;
	int r = dmu_dm_begin(&dm, DM_DEVICE_TABLE, name, "read the table of", NULL);

	if (r)
		return false;
	r = dmu_dm_run(&dm);
	if (!r && !dm_get_next_target(dm.task, NULL, &start, &sectors, &type, &params))
		ours = type && !strcmp(type, DMU_TARGET);
	dmu_dm_end(&dm, r);
	return ours;
}

int dmu_list(dmu_list_fn fn, void *context, struct dmu_error *err)
{
	struct names names = { 0 };
	int r = names_read(&names, err);
	size_t i;

	for (i = 0; !r && i < names.count; i++) {
		struct dmu_info info = { .size = sizeof(info) };

		if (is_ours(names.name[i]) && !dmu_get_info(names.name[i], &info, NULL))
			r = fn(&info, context);
	}
	names_free(&names);
	return r;
}

int dmu_target_version(uint32_t version[3], struct dmu_error *err)
{
	const struct dm_versions *at, *found = NULL;
	struct dmu_dm dm;
	int r = dmu_dm_begin(&dm, DM_DEVICE_LIST_VERSIONS, NULL, "list the targets", err);

	if (r)
		return r;
	r = dmu_dm_run(&dm);
	for (at = r ? NULL : dm_task_get_versions(dm.task); at && !found;
	     at = at->next ? (const void *)((const char *)at + at->next) : NULL)
		if (!strcmp(at->name, DMU_TARGET))
			found = at;
	if (found)
		memcpy(version, found->version, sizeof(found->version));
	else if (!r)
		r = dmu_fail(err, -ENODEV,
			     "The kernel has no %s target; load it with: modprobe dm-userspace",
			     DMU_TARGET);
	return dmu_dm_end(&dm, r);
}
