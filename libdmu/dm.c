// SPDX-License-Identifier: LGPL-2.1-or-later
/* libdevmapper, one task at a time, and what it says kept for the caller. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <unistd.h>

#include <linux/dm-ioctl.h>

#include "dm.h"

#define DM_LOG_LEVEL_MASK	0x7
#define DM_LOG_ERR		3	/* and below: fatal */
#define UDEV_SECONDS		60	/* what systemd-udevd gives an event, and a bit */

static pthread_mutex_t dm_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t log_once = PTHREAD_ONCE_INIT;
static __thread struct dmu_dm *logging;	/* this thread's task, if it has one */

static __attribute__((format(printf, 5, 6)))
void log_captured(int level, const char *file, int line, int class, const char *fmt, ...)
{
	va_list args;
	int code = errno;

	(void)file;
	(void)line;
	(void)class;
	if (!logging || (level & DM_LOG_LEVEL_MASK) > DM_LOG_ERR || logging->text[0])
		return;
	va_start(args, fmt);
	vsnprintf(logging->text, sizeof(logging->text), fmt, args);
	va_end(args);
	logging->text_errno = code;
}

static void take_log(void)
{
	dm_log_with_errno_init(log_captured);
}

int dmu_dm_error(struct dmu_dm *dm)
{
	int code = dm->task ? dm_task_get_errno(dm->task) : 0;
	const char *hint = "";

	if (!code)
		code = dm->text_errno ? dm->text_errno : EIO;
	if (code == EINVAL)
		hint = " (the kernel log says why)";
	return dmu_fail(dm->err, -code, "Cannot %s%s%s: %s%s.", dm->verb, dm->name ? " " : "",
			dm->name ? dm->name : "", dm->text[0] ? dm->text : strerror(code), hint);
}

int dmu_dm_begin(struct dmu_dm *dm, int type, const char *name, const char *verb,
		 struct dmu_error *err)
{
	int r;

	memset(dm, 0, sizeof(*dm));
	dm->name = name;
	dm->verb = verb;
	dm->err = err;
	pthread_once(&log_once, take_log);
	pthread_mutex_lock(&dm_lock);
	logging = dm;
	errno = 0;
	dm->task = dm_task_create(type);
	if (dm->task && (!name || dm_task_set_name(dm->task, name)))
		return 0;
	r = dmu_dm_error(dm);
	return dmu_dm_end(dm, r);
}

int dmu_dm_cookie(struct dmu_dm *dm, uint32_t flags)
{
	uint16_t udev = DM_UDEV_DISABLE_LIBRARY_FALLBACK;

	dm->nodes = true;
	if (flags & DMU_NO_UDEV_SCAN)
		udev |= DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG | DM_UDEV_DISABLE_DISK_RULES_FLAG |
			DM_UDEV_DISABLE_OTHER_RULES_FLAG;
	/* Without udev the library is all that makes nodes. */
	if (!dm_udev_get_sync_support())
		udev &= ~DM_UDEV_DISABLE_LIBRARY_FALLBACK;
	if (!dm_task_set_cookie(dm->task, &dm->cookie, udev))
		return dmu_dm_error(dm);
	return 0;
}

int dmu_dm_run(struct dmu_dm *dm)
{
	errno = 0;
	return dm_task_run(dm->task) ? 0 : dmu_dm_error(dm);
}

/*
 * Waits until only our own count is left in the cookie's semaphore: "take one,
 * see zero, put one back" can only happen at once. What is left of the wait is
 * then libdevmapper's and does not block. A semaphore that is gone was completed
 * by hand (dmsetup udevcomplete_all).
 */
static int cookie_settled(uint32_t cookie)
{
	struct sembuf settled[] = { { 0, -1, 0 }, { 0, 0, 0 }, { 0, 1, 0 } };
	struct timespec limit = { .tv_sec = UDEV_SECONDS };
	int id = semget((key_t)cookie, 1, 0);

	if (id < 0)
		return 0;
	while (semtimedop(id, settled, 3, &limit)) {
		if (errno == EIDRM || errno == EINVAL)
			return 0;
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int udev_wait(struct dmu_dm *dm)
{
	int r = dm->cookie ? cookie_settled(dm->cookie) : 0;

	pthread_mutex_lock(&dm_lock);
	logging = dm;
	if (r)	/* it would block: give the cookie up, the device is there */
		semctl(semget((key_t)dm->cookie, 1, 0), 0, IPC_RMID);
	dm_udev_wait(r ? 0 : dm->cookie);	/* also makes nodes where udev does not */
	logging = NULL;
	pthread_mutex_unlock(&dm_lock);
	if (r)
		return dmu_fail(dm->err, -ETIMEDOUT,
				"udev did not finish with %s in %d seconds; see whether systemd-udevd hangs.",
				dm->name, UDEV_SECONDS);
	return 0;
}

/* A cookie counts one for us; a failed task's must be let go as well. */
int dmu_dm_end(struct dmu_dm *dm, int r)
{
	int waited = 0;

	if (dm->task)
		dm_task_destroy(dm->task);
	dm->task = NULL;
	logging = NULL;
	pthread_mutex_unlock(&dm_lock);
	if (dm->nodes)
		waited = udev_wait(dm);
	return r ? r : waited;
}

/* The encoding of the ioctl, whatever the C library's dev_t is. */
static uint64_t ioctl_dev(const struct dmu_info *info)
{
	return (info->minor & 0xff) | ((uint64_t)info->major << 8) |
	       ((uint64_t)(info->minor & ~0xffU) << 12);
}

int dmu_dm_suspend(const struct dmu_info *info, uint32_t flags, struct dmu_error *err)
{
	struct dm_ioctl io = {
		.version = { DM_VERSION_MAJOR, 0, 0 },
		.data_size = sizeof(io),
		.data_start = sizeof(io),
		.flags = DM_SUSPEND_FLAG,
		.dev = ioctl_dev(info),
	};
	int fd, r = 0;

	if (flags & DMU_NOFLUSH)
		io.flags |= DM_NOFLUSH_FLAG;
	if (flags & DMU_SKIP_LOCKFS)
		io.flags |= DM_SKIP_LOCKFS_FLAG;
	fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return dmu_fail(err, -errno, "Cannot open /dev/mapper/control: %s.",
				strerror(errno));
	if (ioctl(fd, DM_DEV_SUSPEND, &io))
		r = dmu_fail(err, -errno, "Cannot suspend %s: %s.", info->name, strerror(errno));
	close(fd);
	return r;
}
