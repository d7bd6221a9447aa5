/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libdmu internal: one libdevmapper task at a time.
 *
 * libdevmapper keeps global state (its log function, the list of nodes to make),
 * so a lock is held from dmu_dm_begin to dmu_dm_end. Nothing that waits for I/O
 * or for udev happens in between: a suspend is an ioctl of our own
 * (dmu_dm_suspend), and udev's cookie is waited for without the lock.
 */
#ifndef DMU_DM_H
#define DMU_DM_H

#include <libdevmapper.h>

#include "internal.h"

#pragma GCC visibility push(hidden)

struct dmu_dm {
	struct dm_task *task;
	const char *name;	/* of the device, NULL for none */
	const char *verb;	/* for the sentence: "create", "read the table of" */
	uint32_t cookie;	/* udev's, 0 for none */
	bool nodes;		/* the task may make or remove nodes */
	struct dmu_error *err;
	char text[400];		/* libdevmapper's first error */
	int text_errno;		/* errno when it came */
};

/*
 * dmu_dm_begin - lock and make a task of type DM_DEVICE_*
 *
 * On success dmu_dm_end must follow, from the same thread; on failure not.
 */
int dmu_dm_begin(struct dmu_dm *dm, int type, const char *name, const char *verb,
		 struct dmu_error *err);

/* dmu_dm_error - describe what libdevmapper just failed at; returns its errno. */
int dmu_dm_error(struct dmu_dm *dm);

/* dmu_dm_cookie - the task makes a uevent; @flags: DMU_NO_UDEV_SCAN. */
int dmu_dm_cookie(struct dmu_dm *dm, uint32_t flags);

/* dmu_dm_run - run the task; @dm->task then has its results. */
int dmu_dm_run(struct dmu_dm *dm);

/*
 * dmu_dm_end - unlock; then, if there is a cookie, wait for udev
 *
 * @r comes back, or why the wait failed if @r was 0.
 */
int dmu_dm_end(struct dmu_dm *dm, int r);

/* dmu_dm_suspend - without the lock. @info: of the device, for its number. */
int dmu_dm_suspend(const struct dmu_info *info, uint32_t flags, struct dmu_error *err);

#pragma GCC visibility pop

#endif /* DMU_DM_H */
