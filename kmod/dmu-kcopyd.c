// SPDX-License-Identifier: GPL-2.0-only
/*
 * kcopyd clients. All jobs of a client are submitted by one work item: a destination
 * that hangs holds up every job behind it, and a device that lies on another one
 * could wait for itself if they shared one. So a device that copies has a client of
 * its own. That reserves 512 KiB, which an idle device should not cost, and cannot
 * be made on the I/O path: so there are a few spare ones, and a device takes one at
 * its first copy. A worker makes up for it, for whose memory no I/O waits. Should
 * more devices begin than there are spare clients, and memory for more, the copies
 * that they begin meanwhile share one, with the risk that was named.
 */
#include <linux/dm-kcopyd.h>
#include <linux/err.h>

#include "dmu.h"

#define DMU_SPARE_CLIENTS 8

static DEFINE_SPINLOCK(spare_lock);
static struct dm_kcopyd_client *spare[DMU_SPARE_CLIENTS];
static unsigned int nr_spare;
static struct dm_kcopyd_client *shared;

/* False, and kc is still the caller's, if there are enough. */
static bool dmu_kcopyd_spare(struct dm_kcopyd_client *kc)
{
	unsigned long irq;
	bool kept;

	spin_lock_irqsave(&spare_lock, irq);
	kept = nr_spare < DMU_SPARE_CLIENTS;
	if (kept)
		spare[nr_spare++] = kc;
	spin_unlock_irqrestore(&spare_lock, irq);
	return kept;
}

static int dmu_kcopyd_fill(void)
{
	struct dm_kcopyd_client *kc;

	while (READ_ONCE(nr_spare) < DMU_SPARE_CLIENTS) {
		kc = dm_kcopyd_client_create(NULL);
		if (IS_ERR(kc))
			return PTR_ERR(kc);
		if (!dmu_kcopyd_spare(kc))
			dm_kcopyd_client_destroy(kc);
	}
	return 0;
}

/* If it fails, whoever takes the next one has it try again. */
static void dmu_kcopyd_fill_work(struct work_struct *work)
{
	dmu_kcopyd_fill();
}

static DECLARE_WORK(fill_work, dmu_kcopyd_fill_work);

struct dm_kcopyd_client *dmu_kcopyd(struct dmu_device *dev)
{
	/* Pairs with the release below: what is in kc is seen with it. */
	struct dm_kcopyd_client *kc = smp_load_acquire(&dev->kcopyd);
	unsigned long irq;

	if (likely(kc))
		return kc;
	spin_lock_irqsave(&spare_lock, irq);
	kc = dev->kcopyd;
	if (!kc && nr_spare) {
		kc = spare[--nr_spare];
		/* Pairs with the acquire above. */
		smp_store_release(&dev->kcopyd, kc);
	}
	spin_unlock_irqrestore(&spare_lock, irq);
	queue_work(system_unbound_wq, &fill_work);
	return kc ?: shared;
}

void dmu_kcopyd_put(struct dmu_device *dev)
{
	if (dev->kcopyd && !dmu_kcopyd_spare(dev->kcopyd))
		dm_kcopyd_client_destroy(dev->kcopyd);
}

int __init dmu_kcopyd_init(void)
{
	shared = dm_kcopyd_client_create(NULL);
	if (IS_ERR(shared)) {
		int r = PTR_ERR(shared);

		shared = NULL;
		return r;
	}
	return dmu_kcopyd_fill();
}

void dmu_kcopyd_exit(void)
{
	cancel_work_sync(&fill_work);
	while (nr_spare)
		dm_kcopyd_client_destroy(spare[--nr_spare]);
	if (shared)
		dm_kcopyd_client_destroy(shared);
}
