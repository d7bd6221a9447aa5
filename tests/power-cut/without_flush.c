// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Preloaded into cowd: what it flushes is not flushed. tests/power-cut must notice.
 * Without io_uring, which calls nothing that can be replaced, cowd uses fdatasync,
 * and pwritev2 with RWF_DSYNC.
 */
#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>

struct io_uring;
int io_uring_queue_init(unsigned int entries, struct io_uring *ring, unsigned int flags);
int fdatasync(int fd);
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags);
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags);

int io_uring_queue_init(unsigned int entries, struct io_uring *ring, unsigned int flags)
{
	(void)entries;
	(void)ring;
	(void)flags;
	return -ENOSYS;
}

int fdatasync(int fd)
{
	(void)fd;
	return 0;
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
	(void)flags;
	return pwritev(fd, parts, count, offset);
}

/* The name of the same where off_t is made 64 bits wide. */
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
	return pwritev2(fd, parts, count, offset, flags);
}
