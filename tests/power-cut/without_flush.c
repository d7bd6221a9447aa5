// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Preloaded into cowd: what it flushes is not flushed. tests/power-cut must notice.
 * Without io_uring, which calls nothing that can be replaced, cowd uses fdatasync.
 */
#include <errno.h>

struct io_uring;
int io_uring_queue_init(unsigned int entries, struct io_uring *ring, unsigned int flags);
int fdatasync(int fd);

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
