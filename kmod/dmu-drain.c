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

/* In the RCU section that does the lookup, before it. */
u8 dmu_inflight_get(struct dmu_device *dev)
{
	u8 phase = READ_ONCE(dev->phase);

	this_cpu_inc(dev->inflight->n[phase]);
	return phase;
}

/*
 * The section orders the count before the look at draining: dmu_drain_work sets
 * that and waits for a grace period before it sums.
 */
void dmu_inflight_put(struct dmu_device *dev, u8 phase)
{
	rcu_read_lock();
	this_cpu_dec(dev->inflight->n[phase]);
	if (unlikely(READ_ONCE(dev->draining)))
		wake_up(&dev->drained);
	rcu_read_unlock();
}

/* Never too low once nobody adds to this phase any more. */
static long dmu_inflight_sum(struct dmu_device *dev, u8 phase)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu_ptr(dev->inflight, cpu)->n[phase]);
	return sum;
}

static void dmu_drain(struct dmu_device *dev)
{
	u8 old = dev->phase;

	WRITE_ONCE(dev->draining, true);
	WRITE_ONCE(dev->phase, !old);
	synchronize_rcu();
	wait_event(dev->drained, !dmu_inflight_sum(dev, old));
	WRITE_ONCE(dev->draining, false);
}

/* One at a time: a work item never runs twice at once. */
void dmu_drain_work(struct work_struct *work)
{
	struct dmu_device *dev = container_of(work, struct dmu_device, drain_work);
	struct dmu_invalidation *inv, *next;
	u64 attach_no;
	LIST_HEAD(now);

	spin_lock_irq(&dev->lock);
	list_splice_init(&dev->invalidating, &now);
	attach_no = dev->attach_no;
	spin_unlock_irq(&dev->lock);

	dmu_drain(dev);

	spin_lock_irq(&dev->lock);
	if (attach_no == dev->attach_no) {
		dev->replay_wanted = false;
		list_for_each_entry(inv, &now, list)
			inv->gen = dev->gen;
		list_splice_tail_init(&now, &dev->invalidated);
	}
	spin_unlock_irq(&dev->lock);
	/* Whoever asked for these has gone. */
	list_for_each_entry_safe(inv, next, &now, list)
		mempool_free(inv, &dev->invalidation_pool);
	dmu_wake(dev);
}
