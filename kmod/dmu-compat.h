/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between the kernels that we build on; goes away upstream. */
#ifndef DMU_COMPAT_H
#define DMU_COMPAT_H

#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/version.h>

#if KERNEL_VERSION(6, 5, 0) > LINUX_VERSION_CODE
#define dmu_mode_ro(mode)	((mode) & ~FMODE_WRITE)
#define dmu_mode_is_rw(mode)	((mode) & FMODE_WRITE)
#else
#define dmu_mode_ro(mode)	((mode) & ~BLK_OPEN_WRITE)
#define dmu_mode_is_rw(mode)	((mode) & BLK_OPEN_WRITE)
#endif

/* Linux 6.15 has it. For what is large, on the stack, and written to before it is read. */
#ifndef __uninitialized
#if __has_attribute(__uninitialized__)
#define __uninitialized __attribute__((__uninitialized__))
#else
#define __uninitialized
#endif
#endif

static inline void dmu_limit_discards(struct queue_limits *limits,
				      unsigned int granularity)
{
	limits->discard_granularity = granularity;
#if KERNEL_VERSION(6, 9, 0) > LINUX_VERSION_CODE
	limits->max_discard_sectors = UINT_MAX >> SECTOR_SHIFT;
#endif
	limits->max_hw_discard_sectors = UINT_MAX >> SECTOR_SHIFT;
}

#endif
