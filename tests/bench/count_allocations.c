// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Preloaded into cowd by faults.sh: counts what malloc() and its relatives are asked, in
 * the file that COUNT_FILE names, which the script reads while cowd runs. operator new
 * ends here too.
 *
 * The file holds two native 64-bit numbers: calls so far, and bytes asked for.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct counts {
	uint64_t calls;
	uint64_t bytes;
};

/* Before the file is open, and where there is none. */
static struct counts nowhere;
static struct counts *counts = &nowhere;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

__attribute__((constructor)) static void open_counts(void)
{
	const char *path = getenv("COUNT_FILE");
	int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
	void *mem;

	if (fd < 0)
		return;
	if (!ftruncate(fd, sizeof(*counts))) {
		mem = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (mem != MAP_FAILED)
			counts = mem;
	}
	close(fd);
}

static void count(size_t bytes)
{
	__atomic_add_fetch(&counts->calls, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&counts->bytes, bytes, __ATOMIC_RELAXED);
}

void *malloc(size_t size)
{
	count(size);
	return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
	count(n * size);
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
	count(size);
	return __libc_realloc(p, size);
}

void *memalign(size_t alignment, size_t size)
{
	count(size);
	return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
	return memalign(alignment, size);
}

int posix_memalign(void **p, size_t alignment, size_t size)
{
	void *mem = memalign(alignment, size);

	if (!mem)
		return ENOMEM;
	*p = mem;
	return 0;
}
