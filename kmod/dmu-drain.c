// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who uses an extent, without a count in the extent: two per-CPU counters a
 * device, of which I/O takes the one that the current phase names. To drain, the
 * phase is turned; when all that counted in the old one has ended, no I/O is left
 * that looked anything up before the turn. Bios that wait for the daemon count in
 * neither, so a drain always ends (K3).
 */
#include <linux/percpu.h>
#include <linux/rcupdate.h>

#include "dmu.h"

/* Never too low once nobody adds to this phase any more. */
static long dmu_inflight_sum(struct dmu_device *dev, u8 phase)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu_ptr(dev->inflight, cpu)->n[phase]);
	return sum;
}

/* Asks for a drain that begins from now on. Under lock. */
void dmu_drain(struct dmu_device *dev)
{
	lockdep_assert_held(&dev->lock);
	dev->drain_wanted = true;
	queue_work(dev->wq, &dev->drain_work);
}

static bool dmu_drain_begin(struct dmu_device *dev)
{
	bool wanted;

	spin_lock_irq(&dev->lock);
	wanted = dev->drain_wanted;
	dev->drain_wanted = false;
	dev->drain_attach_no = dev->attach_no;
	list_splice_tail_init(&dev->invalidating, &dev->draining_now);
	spin_unlock_irq(&dev->lock);
	if (!wanted)
		return false;
	WRITE_ONCE(dev->draining, true);
	/* Pairs with the acquire in dmu_inflight_get. */
	smp_store_release(&dev->phase, !dev->phase);
	synchronize_rcu();
	return true;
}

struct dmu_invalidation *dmu_invalidation_alloc(struct dmu_device *dev)
{
	struct dmu_invalidation *inv = NULL;

	if (atomic_inc_return(&dev->n_invalidations) <= DMU_MAX_INVALIDATIONS)
		inv = mempool_alloc(&dev->invalidation_pool, GFP_NOWAIT | __GFP_NOWARN);
	if (!inv)
		atomic_dec(&dev->n_invalidations);
	return inv;
}

void dmu_invalidation_free(struct dmu_device *dev, struct dmu_invalidation *inv)
{
	mempool_free(inv, &dev->invalidation_pool);
	atomic_dec(&dev->n_invalidations);
}

static void dmu_drain_end(struct dmu_device *dev)
{
	struct dmu_invalidation *inv, *next;
	LIST_HEAD(orphans);

	WRITE_ONCE(dev->draining, false);
	spin_lock_irq(&dev->lock);
	list_splice_init(&dev->draining_now, &orphans);
	if (dev->drain_attach_no == dev->attach_no) {
		dev->replay_wanted = false;
		list_for_each_entry(inv, &orphans, list)
			inv->gen = dev->gen;
		list_splice_tail_init(&orphans, &dev->invalidated);
	}
	if (dev->drain_wanted)
		queue_work(dev->wq, &dev->drain_work);
	spin_unlock_irq(&dev->lock);
	dmu_wake(dev);
	/* Whoever asked for these has gone. */
	list_for_each_entry_safe(inv, next, &orphans, list)
		dmu_invalidation_free(dev, inv);
}

/*
 * Never blocks on I/O: what it waits for may need this very workqueue. It is
 * queued again by whatever I/O of the old phase ends.
 */
void dmu_drain_work(struct work_struct *work)
{
	struct dmu_device *dev = container_of(work, struct dmu_device, drain_work);

	if (!dev->draining && !dmu_drain_begin(dev))
		return;
	if (!dmu_inflight_sum(dev, !dev->phase))
		dmu_drain_end(dev);
}
