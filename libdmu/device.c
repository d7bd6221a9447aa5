// SPDX-License-Identifier: LGPL-2.1-or-later
/* Devices: one dm device with one "userspace" target each. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "dm.h"

/* Gives the task the table of @spec. */
static int set_table(struct dmu_dm *dm, const struct dmu_spec *spec)
{
	int r, len = dmu_format_params(spec, NULL, 0, dm->err);
	char *params;

	if (len < 0)
		return len;
	params = malloc(len + 1);
	if (!params)
		return dmu_fail(dm->err, -ENOMEM, "There is no memory for the table of %s.",
				spec->name);
	r = dmu_format_params(spec, params, len + 1, dm->err);
	if (r >= 0)
		r = dm_task_add_target(dm->task, 0, spec->sectors, DMU_TARGET, params) ?
			    0 : dmu_dm_error(dm);
	if (!r && (spec->flags & DMU_READ_ONLY))
		r = dm_task_set_ro(dm->task) ? 0 : dmu_dm_error(dm);
	free(params);
	return r;
}

static int set_uuid(struct dmu_dm *dm, const char *uuid)
{
	size_t prefix = sizeof(DMU_UUID_PREFIX) - 1;
	char full[DMU_UUID_MAX];

	if (!uuid)
		return 0;
	if (!strncmp(uuid, DMU_UUID_PREFIX, prefix))
		uuid += prefix;
	snprintf(full, sizeof(full), DMU_UUID_PREFIX "%s", uuid);
	return dm_task_set_uuid(dm->task, full) ? 0 : dmu_dm_error(dm);
}

int dmu_create(const struct dmu_spec *from, struct dmu_info *info, struct dmu_error *err)
{
	struct dmu_spec spec;
	struct dmu_dm dm;
	int r;

	r = dmu_spec_check(&spec, from, err);
	if (!r)
		r = dmu_dm_begin(&dm, DM_DEVICE_CREATE, spec.name, "create the device", err);
	if (r)
		return r;
	r = set_uuid(&dm, spec.uuid);
	if (!r)
		r = set_table(&dm, &spec);
	if (!r)
		r = dmu_dm_cookie(&dm, spec.flags);
	if (!r)
		r = dmu_dm_run(&dm);
	r = dmu_dm_end(&dm, r);
	return r || !info ? r : dmu_get_info(spec.name, info, err);
}

int dmu_load(const struct dmu_spec *from, struct dmu_error *err)
{
	struct dmu_spec spec;
	struct dmu_dm dm;
	int r;

	r = dmu_spec_check(&spec, from, err);
	if (!r)
		r = dmu_dm_begin(&dm, DM_DEVICE_RELOAD, spec.name, "load a table into", err);
	if (r)
		return r;
	r = set_table(&dm, &spec);
	if (!r)
		r = dmu_dm_run(&dm);
	return dmu_dm_end(&dm, r);
}

/* Takes a loaded table away again; a failure changes nothing for the caller. */
static void clear_loaded(const char *name)
{
	struct dmu_dm dm;

	if (dmu_dm_begin(&dm, DM_DEVICE_CLEAR, name, "clear the loaded table of", NULL))
		return;
	dmu_dm_end(&dm, dmu_dm_run(&dm));
}

int dmu_reload(const struct dmu_spec *spec, uint32_t flags, struct dmu_error *err)
{
	int r = dmu_load(spec, err);

	if (r)
		return r;
	r = dmu_suspend(spec->name, flags, err);
	if (r) {
		clear_loaded(spec->name);
		return r;
	}
	return dmu_resume(spec->name, spec->flags & DMU_NO_UDEV_SCAN, err);
}

int dmu_suspend(const char *name, uint32_t flags, struct dmu_error *err)
{
	struct dmu_info info = { .size = sizeof(info) };
	int r = dmu_flags_check(name, flags, DMU_NOFLUSH | DMU_SKIP_LOCKFS, err);

	if (!r)
		r = dmu_get_info(name, &info, err);
	return r ? r : dmu_dm_suspend(&info, flags, err);
}

int dmu_resume(const char *name, uint32_t flags, struct dmu_error *err)
{
	struct dmu_dm dm;
	int r = dmu_flags_check(name, flags, DMU_NO_UDEV_SCAN, err);

	if (!r)
		r = dmu_dm_begin(&dm, DM_DEVICE_RESUME, name, "resume", err);
	if (r)
		return r;
	r = dmu_dm_cookie(&dm, flags);
	if (!r)
		r = dmu_dm_run(&dm);
	return dmu_dm_end(&dm, r);
}

int dmu_remove(const char *name, uint32_t flags, struct dmu_error *err)
{
	struct dmu_dm dm;
	int r = dmu_flags_check(name, flags, DMU_DEFERRED | DMU_NO_UDEV_SCAN, err);

	if (!r)
		r = dmu_dm_begin(&dm, DM_DEVICE_REMOVE, name, "remove", err);
	if (r)
		return r;
	if ((flags & DMU_DEFERRED) && !dm_task_deferred_remove(dm.task))
		r = dmu_dm_error(&dm);
	if (!r)
		r = dmu_dm_cookie(&dm, flags);
	if (!r)
		r = dmu_dm_run(&dm);
	return dmu_dm_end(&dm, r);
}

/* The sectors of the table in use. */
static int table_length(const char *name, uint64_t *sectors, struct dmu_error *err)
{
	uint64_t start, length;
	char *type, *params;
	void *next = NULL;
	struct dmu_dm dm;
	int r = dmu_dm_begin(&dm, DM_DEVICE_TABLE, name, "read the table of", err);

	if (r)
		return r;
	r = dmu_dm_run(&dm);
	*sectors = 0;
	while (!r) {
		next = dm_get_next_target(dm.task, next, &start, &length, &type, &params);
		if (type)
			*sectors = start + length;
		if (!next)
			break;
	}
	return dmu_dm_end(&dm, r);
}

static int load_error_table(const char *name, struct dmu_error *err)
{
	uint64_t sectors;
	struct dmu_dm dm;
	int r = table_length(name, &sectors, err);

	if (!r)
		r = dmu_dm_begin(&dm, DM_DEVICE_RELOAD, name, "load an error table into", err);
	if (r)
		return r;
	if (!dm_task_add_target(dm.task, 0, sectors, "error", ""))
		r = dmu_dm_error(&dm);
	if (!r)
		r = dmu_dm_run(&dm);
	return dmu_dm_end(&dm, r);
}

int dmu_wipe(const char *name, uint32_t flags, struct dmu_error *err)
{
	int r = dmu_flags_check(name, flags, DMU_NO_UDEV_SCAN, err);

	if (!r)
		r = load_error_table(name, err);
	if (r)
		return r;
	r = dmu_suspend(name, DMU_NOFLUSH | DMU_SKIP_LOCKFS, err);
	if (r) {
		clear_loaded(name);
		return r;
	}
	return dmu_resume(name, flags, err);
}

/* -------------------------------------------------------------- queries --- */

static int no_such(struct dmu_dm *dm)
{
	return dmu_fail(dm->err, -ENXIO, "There is no device %s.", dm->name);
}

static uint32_t info_flags(const struct dm_info *dmi)
{
	return (dmi->suspended ? DMU_INFO_SUSPENDED : 0) |
	       (dmi->read_only ? DMU_INFO_READ_ONLY : 0) |
	       (dmi->live_table ? DMU_INFO_LIVE_TABLE : 0) |
	       (dmi->inactive_table ? DMU_INFO_INACTIVE_TABLE : 0) |
	       (dmi->deferred_remove ? DMU_INFO_DEFERRED_REMOVE : 0);
}

static void take_name(struct dmu_dm *dm, struct dmu_info *info)
{
	char *mangled = dm_task_get_name_mangled(dm->task);
	char *name = dm_task_get_name_unmangled(dm->task);
	const char *uuid = dm_task_get_uuid(dm->task);

	snprintf(info->name, sizeof(info->name), "%s", name ? name : "");
	snprintf(info->uuid, sizeof(info->uuid), "%s", uuid ? uuid : "");
	snprintf(info->path, sizeof(info->path), "%s/%s", dm_dir(), mangled ? mangled : "");
	free(mangled);
	free(name);
}

/* From the results of any task that names a device. */
static int take_info(struct dmu_dm *dm, struct dmu_info *info)
{
	struct dm_info dmi;

	memset(&dmi, 0, sizeof(dmi));
	if (!dm_task_get_info(dm->task, &dmi))
		return dmu_dm_error(dm);
	if (!dmi.exists)
		return no_such(dm);
	memset(info, 0, sizeof(*info));
	info->size = sizeof(*info);
	info->major = dmi.major;
	info->minor = dmi.minor;
	info->open_count = dmi.open_count > 0 ? dmi.open_count : 0;
	info->event_nr = dmi.event_nr;
	info->flags = info_flags(&dmi);
	take_name(dm, info);
	return 0;
}

int dmu_get_info(const char *name, struct dmu_info *to, struct dmu_error *err)
{
	struct dmu_info info;
	struct dmu_dm dm;
	int r = dmu_dm_begin(&dm, DM_DEVICE_INFO, name, "look up", err);

	if (r)
		return r;
	r = dmu_dm_run(&dm);
	if (!r)
		r = take_info(&dm, &info);
	if (!r && dmu_copy_out(to, &info, sizeof(info)))
		r = dmu_fail(err, -EINVAL, "The size field of the info is not set.");
	return dmu_dm_end(&dm, r);
}

struct target {
	uint64_t sectors;
	char *params;	/* the caller's to free */
};

/* The one target of a device whose TABLE or STATUS task has run. */
static int take_target(struct dmu_dm *dm, struct target *target)
{
	char *type = NULL, *params = NULL;
	uint64_t start = 0;
	struct dm_info dmi;
	void *next;

	if (!dm_task_get_info(dm->task, &dmi) || !dmi.exists)
		return no_such(dm);
	next = dm_get_next_target(dm->task, NULL, &start, &target->sectors, &type, &params);
	if (!type)
		return dmu_fail(dm->err, -ENODATA, "Device %s has no live table.", dm->name);
	if (next || start || strcmp(type, DMU_TARGET))
		return dmu_fail(dm->err, -EMEDIUMTYPE, "Device %s is not a %s device.", dm->name,
				DMU_TARGET);
	target->params = strdup(params ? params : "");
	if (!target->params)
		return dmu_fail(dm->err, -ENOMEM, "There is no memory for the table of %s.",
				dm->name);
	return 0;
}

static int get_target(const char *name, int type, const char *verb, struct target *target,
		      struct dmu_error *err)
{
	struct dmu_dm dm;
	int r = dmu_dm_begin(&dm, type, name, verb, err);

	if (r)
		return r;
	/* dm would suspend with a flush for a status otherwise. */
	r = dm_task_no_flush(dm.task) ? dmu_dm_run(&dm) : dmu_dm_error(&dm);
	if (!r)
		r = take_target(&dm, target);
	return dmu_dm_end(&dm, r);
}

int dmu_get_table(const char *name, struct dmu_table *table, struct dmu_error *err)
{
	struct target target;
	size_t end = offsetof(struct dmu_table, sectors) + sizeof(table->sectors);
	int r = get_target(name, DM_DEVICE_TABLE, "read the table of", &target, err);

	if (r)
		return r;
	r = dmu_parse_params(target.params, table, err);
	if (!r && table->size >= end)
		table->sectors = target.sectors;
	free(target.params);
	return r;
}

int dmu_get_status(const char *name, struct dmu_status *status, struct dmu_error *err)
{
	struct target target;
	int r = get_target(name, DM_DEVICE_STATUS, "read the status of", &target, err);

	if (r)
		return r;
	r = dmu_parse_status(target.params, status, err);
	free(target.params);
	return r;
}
