// SPDX-License-Identifier: GPL-2.0-only
/*
 * First writes. A promotion locks its granules in dmu_device.busy; what its write
 * does not cover of them is copied first; when copy and write are done the bits
 * are set, and only then does the write complete. Reads look at the bit, so they
 * see the old data until then; other writes to the granules wait for the promotion.
 *
 *	busy -> [copies] -> write -> bits set, uncommitted, unread -> read -> committed
 *
 * An uncommitted promotion is remembered until COMMITTED or the ACK of a FLUSH
 * covers its seq, also without a daemon: it is what the next one is told first.
 * Volatile promotions are remembered by their bits alone, for ever.
 */
#include <linux/bitmap.h>
#include <linux/dm-kcopyd.h>

#include "dmu.h"

#define DMU_UNREAD_MANY 1024	/* records that wake the daemon at once */
#define DMU_BATCH 256		/* records dealt with while interrupts are off */

/* Whether the daemon is too far behind for yet another promotion (K7). */
static bool dmu_is_behind(struct dmu_device *dev)
{
	struct dmu_promotion *oldest;

	if (dev->nr_uncommitted >= dev->max_uncommitted)
		return true;
	oldest = list_first_entry_or_null(&dev->promoted, struct dmu_promotion, list);
	return oldest && time_after(jiffies, oldest->since + DMU_UNCOMMITTED_SECS * HZ);
}

/* Not while they would only park again. */
static void dmu_run_promote_waiters(struct dmu_device *dev)
{
	if (!list_empty(&dev->promote_waiters) && !dmu_is_behind(dev))
		dmu_run_list(dev, &dev->promote_waiters);
}

void dmu_promotion_free_locked(struct dmu_device *dev, struct dmu_promotion *p)
{
	lockdep_assert_held(&dev->lock);
	mempool_free(p, &dev->promotions);
	dmu_run_promote_waiters(dev);
}

/* Freed first, then told: who waits for memory must find it. */
void dmu_promotion_free(struct dmu_device *dev, struct dmu_promotion *p)
{
	unsigned long irq;

	mempool_free(p, &dev->promotions);
	/* Pairs with the barrier in dmu_wait_for_promotions. */
	smp_mb();
	if (list_empty_careful(&dev->promote_waiters))
		return;
	spin_lock_irqsave(&dev->lock, irq);
	dmu_run_promote_waiters(dev);
	spin_unlock_irqrestore(&dev->lock, irq);
}

static void dmu_promoted_due(struct dmu_device *dev)
{
	dev->promoted_due = true;
	wake_up(&dev->readable);
}

/*
 * The granules of plan that are still not promoted and that nobody else is
 * promoting, from the first on. 0: wait for *other, or plan again if that is NULL.
 */
static u32 dmu_free_prefix(struct dmu_device *dev, struct dmu_plan *plan, u64 *start, u64 *end,
			   u32 *bit, struct dmu_promotion **other)
{
	const struct dmu_map *map = &plan->map;
	u64 stop = plan->start + plan->len, limit = map->start + map->len;
	struct dmu_range *busy;
	u32 granules = 1;

	*other = NULL;
	if (map->flags & DMU_F_OVERLAY) {
		u64 first = (plan->start - map->start) >> map->granule_shift;
		u64 last = (stop - 1 - map->start) >> map->granule_shift;

		granules = last - first + 1;
		*bit = first % DMU_LEAF_GRANULES;
		granules = find_next_bit(plan->leaf->bits, *bit + granules, *bit) - *bit;
		*start = map->start + (first << map->granule_shift);
		*end = min(*start + ((u64)granules << map->granule_shift), limit);
	} else {
		*bit = 0;
		*start = map->start;
		*end = limit;
		if (map->extent->promoted)
			granules = 0;
	}
	if (!granules)
		return 0;
	busy = dmu_range_first(&dev->busy, *start, *end - 1);
	if (!busy)
		return granules;
	*other = container_of(busy, struct dmu_promotion, range);
	if (!(map->flags & DMU_F_OVERLAY) || busy->start < *start + map->granule)
		return 0;
	granules = (busy->start - *start) >> map->granule_shift;
	*end = *start + ((u64)granules << map->granule_shift);
	return granules;
}

static bool dmu_is_stale(struct dmu_device *dev, struct dmu_io *io, struct dmu_plan *plan)
{
	struct dmu_extent *e = plan->map.extent;

	if (e == io->answer)
		return e->epoch != dev->epoch;
	return e->c.dead || (plan->leaf && plan->leaf->c.dead);
}

static void dmu_promotion_setup(struct dmu_promotion *p, struct dmu_device *dev,
				struct dmu_io *io, struct dmu_plan *plan)
{
	memset(p, 0, sizeof(*p));
	INIT_LIST_HEAD(&p->waiters);
	INIT_LIST_HEAD(&p->list);
	p->dev = dev;
	p->io = io;
	p->flags = plan->map.flags;
	p->extent = plan->map.extent;
	refcount_inc(&p->extent->c.ref);
	p->leaf = plan->leaf;
	if (p->leaf)
		refcount_inc(&p->leaf->c.ref);
}

/* Parks io on waiters, unless it must not. */
static enum dmu_begin dmu_wait_on(struct dmu_device *dev, struct dmu_io *io,
				  struct list_head *waiters, bool for_daemon)
{
	if (io->flags & DMU_IO_NOWAIT)
		return DMU_WOULD_PARK;
	if (for_daemon && !dmu_may_park(dev, &io->status))
		return DMU_REFUSED;
	list_add_tail(&io->list, waiters);
	return DMU_PARKED;
}

/*
 * Until the daemon has caught up, or *p, a record, is to be had: who frees one does not
 * take the lock to see that nobody waits, so the last look is after the io is listed.
 */
static enum dmu_begin dmu_wait_for_promotions(struct dmu_device *dev, struct dmu_io *io,
					      struct dmu_promotion **p)
{
	enum dmu_begin r;

	dmu_promoted_due(dev);
	r = dmu_wait_on(dev, io, &dev->promote_waiters, true);
	if (r != DMU_PARKED || *p)
		return r;
	/* Pairs with the barrier in dmu_promotion_free. */
	smp_mb();
	*p = dmu_promotion_alloc(dev);
	if (!*p)
		return r;
	list_del(&io->list);
	return DMU_AGAIN;
}

enum dmu_begin dmu_promote_begin(struct dmu_io *io, struct dmu_plan *plan,
				 struct dmu_promotion **out)
{
	struct dmu_device *dev = io->t->dev;
	struct dmu_promotion *p = dmu_promotion_alloc(dev), *other;
	enum dmu_begin r = DMU_AGAIN;
	unsigned long irq;
	u64 start, end;
	u32 granules, bit;

	spin_lock_irqsave(&dev->lock, irq);
	if (dmu_is_stale(dev, io, plan))
		goto out;
	granules = dmu_free_prefix(dev, plan, &start, &end, &bit, &other);
	if (!granules) {
		if (other)
			r = dmu_wait_on(dev, io, &other->waiters, false);
		goto out;
	}
	if (!p || (!(plan->map.flags & DMU_F_VOLATILE) && dmu_is_behind(dev))) {
		r = dmu_wait_for_promotions(dev, io, &p);
		goto out;
	}
	plan->len = min_t(u64, plan->len, end - plan->start);
	/* Copies may have to wait for a job of kcopyd's. */
	if ((io->flags & DMU_IO_NOWAIT) && plan->len < end - start) {
		r = DMU_WOULD_PARK;
		goto out;
	}
	dmu_promotion_setup(p, dev, io, plan);
	p->range.start = start;
	p->range.last = end - 1;
	p->first_bit = bit;
	p->granules = granules;
	p->to.dest = plan->map.write.dest;
	p->to.sector = plan->map.write.sector + (start - plan->map.start);
	p->from = plan->map.read;
	if (p->from.dest < DMU_DEST_ZERO)
		p->from.sector += start - plan->map.start;
	plan->to.dest = p->to.dest;
	plan->to.sector = p->to.sector + (plan->start - start);
	dmu_range_insert(&p->range, &dev->busy);
	*out = p;
	p = NULL;
	r = DMU_BEGUN;
out:
	spin_unlock_irqrestore(&dev->lock, irq);
	if (p)
		dmu_promotion_free(dev, p);
	return r;
}

static void dmu_copy_done(int read_err, unsigned long write_err, void *context)
{
	struct dmu_promotion *p = context;

	if (read_err)
		WRITE_ONCE(p->read_failed, true);
	if (read_err || write_err)
		WRITE_ONCE(p->status, BLK_STS_IOERR);
	if (atomic_dec_and_test(&p->copies))
		dmu_copied(p);
}

/* Brings [first, end), in sectors of p's granules, to the write side. */
static void dmu_copy(struct dmu_promotion *p, u64 first, u64 end)
{
	struct dm_kcopyd_client *kc = dmu_kcopyd(p->dev);
	struct dmu_dest *dests = p->io->t->dests;
	struct dm_io_region to = {
		.bdev = dests[p->to.dest].dm->bdev,
		.sector = p->to.sector + first,
		.count = end - first,
	};
	struct dm_io_region from;

	atomic_inc(&p->copies);
	if (p->from.dest == DMU_DEST_ZERO) {
		dm_kcopyd_zero(kc, 1, &to, 0, dmu_copy_done, p);
		return;
	}
	from.bdev = dests[p->from.dest].dm->bdev;
	from.sector = p->from.sector + first;
	from.count = to.count;
	dm_kcopyd_copy(kc, &from, 1, &to, 0, dmu_copy_done, p);
}

void dmu_copied_runs(const struct dmu_promotion *p, const struct bio *bio, u64 *before,
		     u64 *after, u64 *len)
{
	*before = bio->bi_iter.bi_sector - p->to.sector;
	*after = *before + bio_sectors(bio);
	*len = p->range.last - p->range.start + 1;
}

void dmu_start_copies(struct dmu_promotion *p)
{
	u64 before, after, len;

	dmu_copied_runs(p, p->bio, &before, &after, &len);
	atomic_set(&p->copies, 1);
	if (before)
		dmu_copy(p, 0, before);
	if (after < len)
		dmu_copy(p, after, len);
	if (atomic_dec_and_test(&p->copies))
		dmu_copied(p);
}

/*
 * Starts the copies of what bio does not cover of its granules. True if there are
 * any: bio goes out when they are done, or fails with them.
 */
bool dmu_promote_copies(struct dmu_promotion *p, struct bio *bio)
{
	u64 before, after, len;
	unsigned long irq;

	dmu_copied_runs(p, bio, &before, &after, &len);
	if (!before && after == len)
		return false;
	spin_lock_irqsave(&p->dev->lock, irq);
	p->dev->n.copies += !!before + (after < len);
	p->dev->n.copied_sectors += len - bio_sectors(bio);
	spin_unlock_irqrestore(&p->dev->lock, irq);
	p->bio = bio;
	dmu_start_copies(p);
	return true;
}

static bool dmu_promoted_merge(struct dmu_device *dev, struct dmu_promotion *p)
{
	struct dmu_promotion *tail;

	if (list_empty(&dev->promoted))
		return false;
	tail = list_last_entry(&dev->promoted, struct dmu_promotion, list);
	if (!tail->unread || tail->closed || tail->flags != p->flags ||
	    tail->range.last + 1 != p->range.start || tail->to.dest != p->to.dest ||
	    tail->to.sector + (p->range.start - tail->range.start) != p->to.sector)
		return false;
	dmu_range_remove(&tail->range, &dev->uncommitted);
	tail->range.last = p->range.last;
	tail->granules += p->granules;
	tail->seq = p->seq;
	dmu_range_insert(&tail->range, &dev->uncommitted);
	return true;
}

static void dmu_unread(struct dmu_device *dev)
{
	if (++dev->nr_unread >= DMU_UNREAD_MANY)
		dmu_promoted_due(dev);
	else if (dev->nr_unread == 1)
		queue_delayed_work(dev->wq, &dev->promoted_work, DMU_PROMOTED_DELAY);
}

/* Remembers a promotion that is done. False if there is no need to. */
static bool dmu_remember(struct dmu_device *dev, struct dmu_promotion *p)
{
	if (p->flags & DMU_F_VOLATILE) {
		if (!dev->channel)
			return false;
		list_add_tail(&p->list, &dev->promoted_volatile);
		dmu_unread(dev);
		return true;
	}
	p->seq = ++dev->seq_last;
	p->since = jiffies;
	dev->nr_uncommitted += p->granules;
	if (dmu_promoted_merge(dev, p))
		return false;
	p->unread = true;
	p->closed = p->flags & DMU_F_SYNC;	/* DONE tells this seq */
	list_add_tail(&p->list, &dev->promoted);
	dmu_range_insert(&p->range, &dev->uncommitted);
	if (!dev->unread)
		dev->unread = p;
	dmu_unread(dev);
	return true;
}

static void dmu_set_bits(struct dmu_promotion *p)
{
	if (p->leaf) {
		bitmap_set(p->leaf->bits, p->first_bit, p->granules);
		if (p->flags & DMU_F_VOLATILE)
			p->leaf->keep = true;
	} else {
		/* Pairs with the acquire in dmu_extent_snapshot. */
		smp_store_release(&p->extent->promoted, true);
	}
}

/* The first write has ended. io->seq is its commit if it has one to wait for. */
void dmu_promote_end(struct dmu_promotion *p, bool ok)
{
	struct dmu_device *dev = p->dev;
	struct dmu_extent *e = p->extent;
	struct dmu_leaf *leaf = p->leaf;
	struct dmu_io *io = p->io;
	bool kept = false;
	unsigned long irq;

	spin_lock_irqsave(&dev->lock, irq);
	dmu_range_remove(&p->range, &dev->busy);
	dmu_run_list(dev, &p->waiters);
	if (ok) {
		dev->n.promotions += p->granules;
		dmu_set_bits(p);
		p->extent = NULL;
		p->leaf = NULL;
		p->io = NULL;
		kept = dmu_remember(dev, p);
		io->seq = max(io->seq, p->seq);
	}
	dmu_run_promote_waiters(dev);
	spin_unlock_irqrestore(&dev->lock, irq);

	dmu_extent_put(e);
	if (leaf)
		dmu_leaf_put(leaf);
	if (!kept)
		dmu_promotion_free(dev, p);
}

/* A plain UNCOMMITTED extent counts as promoted from the start. Takes p. */
void dmu_promote_plain(struct dmu_device *dev, struct dmu_promotion *p,
		       const struct dmu_extent *e)
{
	lockdep_assert_held(&dev->lock);
	memset(p, 0, sizeof(*p));
	INIT_LIST_HEAD(&p->waiters);
	p->dev = dev;
	p->flags = e->flags;
	p->range.start = e->start;
	p->range.last = e->start + e->len - 1;
	p->to = e->write;
	p->granules = 1;
	if (!dmu_remember(dev, p))
		dmu_promotion_free_locked(dev, p);
}

/* From here on nothing joins the last record, so that its seq stays what it is. */
u64 dmu_flush_seq(struct dmu_device *dev)
{
	unsigned long irq;
	u64 seq = 0;

	if (list_empty_careful(&dev->promoted))
		return 0;
	spin_lock_irqsave(&dev->lock, irq);
	if (!list_empty(&dev->promoted)) {
		list_last_entry(&dev->promoted, struct dmu_promotion, list)->closed = true;
		seq = dev->seq_last;
	}
	spin_unlock_irqrestore(&dev->lock, irq);
	return seq;
}

u64 dmu_fua_seq(struct dmu_device *dev, u64 start, u32 len)
{
	u64 last = start + len - 1, seq = 0;
	struct dmu_promotion *p;
	struct dmu_range *r;
	unsigned long irq;

	if (list_empty_careful(&dev->promoted))
		return 0;
	spin_lock_irqsave(&dev->lock, irq);
	for (r = dmu_range_first(&dev->uncommitted, start, last); r;
	     r = dmu_range_next(r, start, last)) {
		p = container_of(r, struct dmu_promotion, range);
		p->closed = true;
		seq = max(seq, p->seq);
	}
	spin_unlock_irqrestore(&dev->lock, irq);
	return seq;
}

bool dmu_needs_commit(struct dmu_device *dev, u64 seq)
{
	struct dmu_promotion *p;

	p = list_first_entry_or_null(&dev->promoted, struct dmu_promotion, list);
	return p && p->seq <= seq;
}

/* Forgets a batch of what seq covers. False when there is no more. */
static bool dmu_commit_some(struct dmu_device *dev, u64 seq)
{
	struct dmu_promotion *p, *next;
	LIST_HEAD(done);
	int n = 0;

	spin_lock_irq(&dev->lock);
	list_for_each_entry_safe(p, next, &dev->promoted, list) {
		if (p->seq > seq || n == DMU_BATCH)
			break;
		dmu_range_remove(&p->range, &dev->uncommitted);
		dev->nr_uncommitted -= p->granules;
		list_move_tail(&p->list, &done);
		n++;
	}
	spin_unlock_irq(&dev->lock);

	list_for_each_entry_safe(p, next, &done, list)
		mempool_free(p, &dev->promotions);
	cond_resched();
	return n == DMU_BATCH;
}

int dmu_commit(struct dmu_device *dev, u64 seq)
{
	LIST_HEAD(flushes);
	bool known;

	spin_lock_irq(&dev->lock);
	known = seq <= dev->seq_read;
	spin_unlock_irq(&dev->lock);
	if (!known)
		return -EINVAL;
	while (dmu_commit_some(dev, seq))
		;
	spin_lock_irq(&dev->lock);
	dev->seq_committed = max(dev->seq_committed, seq);
	dmu_items_take_flushes(dev, dev->seq_committed, &flushes);
	dmu_run_promote_waiters(dev);
	spin_unlock_irq(&dev->lock);
	dmu_abort_all(&flushes, BLK_STS_OK);
	return 0;
}

/* The same for what is in a range alone: a write that was held is durable now. */
void dmu_commit_range(struct dmu_device *dev, u64 start, u64 last, u64 seq)
{
	struct dmu_range *r, *next;

	lockdep_assert_held(&dev->lock);
	for (r = dmu_range_first(&dev->uncommitted, start, last); r; r = next) {
		struct dmu_promotion *p = container_of(r, struct dmu_promotion, range);

		next = dmu_range_next(r, start, last);
		if (p->seq > seq || p->unread)
			continue;
		dmu_range_remove(r, &dev->uncommitted);
		dev->nr_uncommitted -= p->granules;
		list_del(&p->list);
		dmu_promotion_free_locked(dev, p);
	}
}

/* For a new channel: everything is to be told again. */
void dmu_replay_reset(struct dmu_device *dev)
{
	struct dmu_promotion *p, *next;

	lockdep_assert_held(&dev->lock);
	list_for_each_entry_safe(p, next, &dev->promoted_volatile, list) {
		list_del(&p->list);
		dmu_promotion_free_locked(dev, p);
	}
	dev->nr_unread = 0;
	list_for_each_entry(p, &dev->promoted, list) {
		p->unread = true;
		p->replay = true;
		p->closed = true;
		dev->nr_unread++;
	}
	dev->unread = list_first_entry_or_null(&dev->promoted, struct dmu_promotion, list);
	dev->seq_read = dev->seq_committed;
	dev->replay_volatile = 0;
}

static void dmu_promoted_msg(struct dmu_msg *msg, u64 start, u64 len, const struct dmu_side *to)
{
	msg->type = DMU_MSG_PROMOTED;
	msg->sector = start;
	msg->len = len;
	msg->write_dest = to->dest;
	msg->write_sector = to->sector;
}

/* The next run of promoted granules of a leaf that holds sector at; moves at on. */
static bool dmu_replay_leaf(struct dmu_extent *e, u64 *at, struct dmu_msg *msg)
{
	u64 granule = (*at - e->start) >> e->granule_shift, end = e->start + e->len;
	u32 index = granule / DMU_LEAF_GRANULES, bit = granule % DMU_LEAF_GRANULES, stop;
	u64 leaf_start, leaf_len, start, last;
	struct dmu_leaf *leaf;

	dmu_leaf_span(e, index, &leaf_start, &leaf_len);
	*at = leaf_start + leaf_len;
	leaf = dmu_leaf_find(e, index);
	if (!leaf || !leaf->keep)
		return false;
	bit = find_next_bit(leaf->bits, DMU_LEAF_GRANULES, bit);
	if (bit == DMU_LEAF_GRANULES)
		return false;
	stop = find_next_zero_bit(leaf->bits, DMU_LEAF_GRANULES, bit);
	start = leaf_start + ((u64)bit << e->granule_shift);
	last = min(leaf_start + ((u64)stop << e->granule_shift), end);
	*at = min(*at, last);
	dmu_promoted_msg(msg, start, last - start, &e->write);
	msg->write_sector += start - e->start;
	return true;
}

/*
 * Of what only the kernel remembers. False at the end, or, with replay_more set,
 * after so many steps that the lock should be let go.
 */
static bool dmu_replay_next(struct dmu_device *dev, struct dmu_msg *msg)
{
	struct dmu_extent *e;
	int steps = 0;

	dev->replay_more = false;
	while ((e = dmu_extent_next(dev, dev->replay_volatile))) {
		u64 at = max(dev->replay_volatile, e->start), end = e->start + e->len;
		bool told = false;

		if (++steps > DMU_BATCH) {
			dev->replay_more = true;
			return false;
		}
		dev->replay_volatile = end;
		if (!(e->flags & DMU_F_VOLATILE))
			continue;
		if (e->flags & DMU_F_OVERLAY) {
			told = dmu_replay_leaf(e, &at, msg);
			dev->replay_volatile = at;
		} else if ((e->flags & DMU_F_COPY_FIRST) ? e->promoted :
							   !!(e->flags & DMU_F_UNCOMMITTED)) {
			dmu_promoted_msg(msg, e->start, e->len, &e->write);
			told = true;
		}
		if (told)
			return true;
	}
	return false;
}

bool dmu_promoted_pop(struct dmu_device *dev, struct dmu_msg *msg)
{
	struct dmu_promotion *p = dev->unread;

	lockdep_assert_held(&dev->lock);
	if (p) {
		dmu_promoted_msg(msg, p->range.start, p->range.last - p->range.start + 1, &p->to);
		msg->flags = p->replay ? DMU_F_REPLAY : 0;
		msg->seq = p->seq;
		dev->seq_read = p->seq;
		p->unread = false;
		dev->nr_unread--;
		dev->unread = list_is_last(&p->list, &dev->promoted) ? NULL :
									list_next_entry(p, list);
	} else if (!list_empty(&dev->promoted_volatile)) {
		p = list_first_entry(&dev->promoted_volatile, struct dmu_promotion, list);
		dmu_promoted_msg(msg, p->range.start, p->range.last - p->range.start + 1, &p->to);
		msg->flags = DMU_F_VOLATILE;
		list_del(&p->list);
		dev->nr_unread--;
		dmu_promotion_free_locked(dev, p);
	} else if (dev->replaying && dmu_replay_next(dev, msg)) {
		msg->flags = DMU_F_VOLATILE | DMU_F_REPLAY;
	} else {
		return false;
	}
	if (!dev->nr_unread)
		dev->promoted_due = false;
	return true;
}

void dmu_promoted_work(struct work_struct *work)
{
	struct dmu_device *dev = container_of(to_delayed_work(work), struct dmu_device,
					      promoted_work);

	spin_lock_irq(&dev->lock);
	if (dev->nr_unread)
		dmu_promoted_due(dev);
	spin_unlock_irq(&dev->lock);
}
