// SPDX-License-Identifier: GPL-2.0-only
/*
 * Items: what the daemon is asked. An item lives in the per-bio data of the io
 * that asked, so asking needs no memory; further bios in the range of a FAULT
 * join it. An item is queued, then sent, then answered; when the channel closes
 * what was sent goes back to the queue, so no bio is ever without an owner (K1).
 */
#include <linux/hash.h>

#include "dmu.h"

static struct hlist_head *dmu_id_bucket(struct dmu_device *dev, u64 id)
{
	return &dev->ids[hash_64(id, ilog2(DMU_ID_BUCKETS))];
}

void dmu_wake(struct dmu_device *dev)
{
	wake_up(&dev->readable);
}

/* Whether there is, or may come, a daemon to wait for. */
bool dmu_may_park(struct dmu_device *dev, blk_status_t *status)
{
	lockdep_assert_held(&dev->lock);
	/* An interrupted suspend is over for dm before it tells us so: then wait. */
	if (dev->pushback && dev->live && dm_noflush_suspending(dev->live->ti))
		*status = BLK_STS_DM_REQUEUE;
	else if (dev->gone || (dev->failing && !dev->channel))
		*status = BLK_STS_IOERR;
	else
		return true;
	return false;
}

static void dmu_item_enqueue(struct dmu_device *dev, struct dmu_item *item)
{
	item->id = ++dev->next_id;
	item->gen = dev->gen;
	item->state = DMU_ITEM_QUEUED;
	hlist_add_head(&item->hash, dmu_id_bucket(dev, item->id));
	list_add_tail(&item->list, &dev->queue);
}

/* An unanswered FAULT for the same access that this one may wait for, too. */
static struct dmu_item *dmu_item_to_join(struct dmu_device *dev, u32 flags, u64 start)
{
	struct dmu_range *r;

	for (r = dmu_range_first(&dev->faults, start, start); r;
	     r = dmu_range_next(r, start, start)) {
		struct dmu_item *item = container_of(r, struct dmu_item, range);

		if (item->flags == flags || (item->flags & flags & DMU_F_LEAF))
			return item;
	}
	return NULL;
}

static void dmu_item_count(struct dmu_device *dev, struct dmu_io *io, u32 type)
{
	if (type == DMU_MSG_FLUSH)
		dev->n.daemon_flushes++;
	else if (type == DMU_MSG_ERROR)
		dev->n.errors++;
	else if (type == DMU_MSG_FAULT && !dmu_io_reads(io))
		dev->n.writes_parked++;
	else if (type == DMU_MSG_FAULT)
		dev->n.reads_parked++;
}

/*
 * A first write whose mapping has been dropped is still under way here, and the
 * daemon has not been told of it: an answer now would not count it in. So the io
 * waits for it and is looked at again.
 */
static bool dmu_wait_for_promotion(struct dmu_device *dev, struct dmu_io *io, u64 start, u64 len)
{
	struct dmu_range *r = dmu_range_first(&dev->busy, start, start + len - 1);

	if (!r)
		return false;
	list_add_tail(&io->list, &container_of(r, struct dmu_promotion, range)->waiters);
	return true;
}

/*
 * Parks io and asks. The io is no longer the caller's: it may be answered, or, if
 * nobody can be asked, ended before this returns.
 */
void dmu_ask(struct dmu_io *io, u32 type, u32 flags, u64 start, u64 len)
{
	struct dmu_device *dev = io->t->dev;
	struct dmu_item *item = &io->item, *other;
	bool held = type == DMU_MSG_DONE || type == DMU_MSG_FLUSH || type == DMU_MSG_ERROR;
	blk_status_t status = BLK_STS_OK;
	unsigned long irq;

	if (held)
		io->flags |= DMU_IO_HELD;
	spin_lock_irqsave(&dev->lock, irq);
	if (type == DMU_MSG_FLUSH && !dmu_needs_commit(dev, io->seq))
		goto end;
	if (!dmu_may_park(dev, &status))
		goto end;
	/* A suspend that flushes cannot wait for somebody to make room. */
	if (type == DMU_MSG_ERROR && dev->flushing_suspend) {
		status = BLK_STS_NOSPC;
		goto end;
	}
	if (!held && dmu_wait_for_promotion(dev, io, start, len)) {
		spin_unlock_irqrestore(&dev->lock, irq);
		return;
	}
	dmu_item_count(dev, io, type);
	other = type == DMU_MSG_FAULT ? dmu_item_to_join(dev, flags, start) : NULL;
	if (other) {
		list_add_tail(&io->list, &other->ios);
		spin_unlock_irqrestore(&dev->lock, irq);
		return;
	}
	if (type == DMU_MSG_FLUSH)
		dev->nr_flushes++;
	item->type = type;
	item->flags = flags;
	item->seq = held ? io->seq : 0;
	item->to = io->to;
	item->error = type == DMU_MSG_ERROR ? ENOSPC : 0;
	item->range.start = start;
	item->range.last = start + len - 1;
	INIT_LIST_HEAD(&item->ios);
	list_add(&io->list, &item->ios);
	if (type == DMU_MSG_FAULT) {
		dmu_range_insert(&item->range, &dev->faults);
		dev->n.faults++;
	}
	dmu_item_enqueue(dev, item);
	dmu_wake(dev);
	spin_unlock_irqrestore(&dev->lock, irq);
	return;
end:
	spin_unlock_irqrestore(&dev->lock, irq);
	dmu_abort(io, status);
}

struct dmu_item *dmu_item_find(struct dmu_device *dev, u64 id)
{
	struct dmu_item *item;

	lockdep_assert_held(&dev->lock);
	hlist_for_each_entry(item, dmu_id_bucket(dev, id), hash)
		if (item->id == id)
			return item->state == DMU_ITEM_SENT ? item : NULL;
	return NULL;
}

/* The item is no more; who waited for it is added to ios. */
void dmu_item_take(struct dmu_device *dev, struct dmu_item *item, struct list_head *ios)
{
	lockdep_assert_held(&dev->lock);
	hlist_del(&item->hash);
	list_del(&item->list);
	if (item->type == DMU_MSG_FAULT)
		dmu_range_remove(&item->range, &dev->faults);
	else if (item->type == DMU_MSG_FLUSH)
		dev->nr_flushes--;
	item->state = DMU_ITEM_NONE;
	list_splice_tail_init(&item->ios, ios);
}

bool dmu_item_pop(struct dmu_device *dev, struct dmu_msg *msg)
{
	struct dmu_item *item = list_first_entry_or_null(&dev->queue, struct dmu_item, list);

	lockdep_assert_held(&dev->lock);
	if (!item)
		return false;
	item->state = DMU_ITEM_SENT;
	list_move_tail(&item->list, &dev->sent);
	msg->type = item->type;
	msg->flags = item->flags;
	msg->id = item->id;
	msg->seq = item->seq;
	if (item->type == DMU_MSG_FAULT)
		msg->gen = item->gen;
	if (item->type != DMU_MSG_FLUSH) {
		msg->sector = item->range.start;
		msg->len = item->range.last - item->range.start + 1;
	}
	if (item->type == DMU_MSG_DONE || item->type == DMU_MSG_ERROR) {
		msg->write_dest = item->to.dest;
		msg->write_sector = item->to.sector;
		msg->error = item->error;
	}
	return true;
}

void dmu_items_requeue_sent(struct dmu_device *dev)
{
	struct dmu_item *item;

	lockdep_assert_held(&dev->lock);
	list_for_each_entry(item, &dev->sent, list)
		item->state = DMU_ITEM_QUEUED;
	list_splice_init(&dev->sent, &dev->queue);
}

/*
 * What the daemon may be answering from a state that INVALIDATE has just ended is
 * asked again under a new id, so that the late answer gets ENOENT. Who asked for bits
 * looks again: there may be no overlay any more that they could be of.
 */
void dmu_items_reask(struct dmu_device *dev, u64 start, u64 last)
{
	struct dmu_range *r, *next, *busy;
	LIST_HEAD(ios);

	lockdep_assert_held(&dev->lock);
	for (r = dmu_range_first(&dev->faults, start, last); r; r = next) {
		struct dmu_item *item = container_of(r, struct dmu_item, range);

		next = dmu_range_next(r, start, last);
		busy = dmu_range_first(&dev->busy, r->start, r->last);
		if (busy) {
			dmu_item_take(dev, item,
				      &container_of(busy, struct dmu_promotion, range)->waiters);
		} else if (item->flags & DMU_F_LEAF) {
			dmu_item_take(dev, item, &ios);
		} else if (item->state == DMU_ITEM_SENT) {
			hlist_del(&item->hash);
			list_del(&item->list);
			dmu_item_enqueue(dev, item);
		}
	}
	dmu_run_list(dev, &ios);
}

void dmu_items_take_all(struct dmu_device *dev, struct list_head *ios)
{
	struct dmu_item *item, *next;

	lockdep_assert_held(&dev->lock);
	list_splice_tail_init(&dev->sent, &dev->queue);
	list_for_each_entry_safe(item, next, &dev->queue, list)
		dmu_item_take(dev, item, ios);
	list_splice_tail_init(&dev->promote_waiters, ios);
}

/* Who waits for room. */
void dmu_items_take_errors(struct dmu_device *dev, struct list_head *ios)
{
	struct list_head *lists[] = { &dev->sent, &dev->queue };
	struct dmu_item *item, *next;
	unsigned int i;

	lockdep_assert_held(&dev->lock);
	for (i = 0; i < ARRAY_SIZE(lists); i++)
		list_for_each_entry_safe(item, next, lists[i], list)
			if (item->type == DMU_MSG_ERROR)
				dmu_item_take(dev, item, ios);
}

/* Who waits for a commit that has come. The destinations were flushed before they asked. */
void dmu_items_take_flushes(struct dmu_device *dev, u64 seq, struct list_head *ios)
{
	struct list_head *lists[] = { &dev->sent, &dev->queue };
	struct dmu_item *item, *next;
	unsigned int i;

	lockdep_assert_held(&dev->lock);
	for (i = 0; i < ARRAY_SIZE(lists) && dev->nr_flushes; i++)
		list_for_each_entry_safe(item, next, lists[i], list)
			if (item->type == DMU_MSG_FLUSH && item->seq <= seq)
				dmu_item_take(dev, item, ios);
}

/* How many questions are open, and how many bios wait: for answers, commits, promotions. */
unsigned int dmu_items_waiting(struct dmu_device *dev, unsigned int *bios)
{
	struct list_head *lists[] = { &dev->queue, &dev->sent };
	struct dmu_item *item;
	struct dmu_range *r;
	struct dmu_io *io;
	unsigned int i, items = 0;

	lockdep_assert_held(&dev->lock);
	*bios = 0;
	for (i = 0; i < ARRAY_SIZE(lists); i++) {
		list_for_each_entry(item, lists[i], list) {
			items++;
			list_for_each_entry(io, &item->ios, list)
				(*bios)++;
		}
	}
	list_for_each_entry(io, &dev->promote_waiters, list)
		(*bios)++;
	for (r = dmu_range_first(&dev->busy, 0, U64_MAX); r; r = dmu_range_next(r, 0, U64_MAX))
		list_for_each_entry(io, &container_of(r, struct dmu_promotion, range)->waiters,
				    list)
			(*bios)++;
	return items;
}

/* Nobody serves the device: from when on do bios that need a daemon fail? */
void dmu_no_daemon(struct dmu_device *dev)
{
	lockdep_assert_held(&dev->lock);
	if (dev->channel || dev->gone || !dev->live)
		return;
	if (dev->live->fail_if_no_daemon)
		mod_delayed_work(dev->wq, &dev->no_daemon_work, dev->live->fail_secs * HZ);
	else if (dev->flushing_suspend)
		mod_delayed_work(dev->wq, &dev->no_daemon_work, DMU_SUSPEND_SECS * HZ);
}

void dmu_no_daemon_work(struct work_struct *work)
{
	struct dmu_device *dev = container_of(to_delayed_work(work), struct dmu_device,
					      no_daemon_work);
	LIST_HEAD(ios);

	spin_lock_irq(&dev->lock);
	if (!dev->channel && dev->live &&
	    (dev->live->fail_if_no_daemon || dev->flushing_suspend)) {
		dev->failing = true;
		dmu_items_take_all(dev, &ios);
		dmu_event(dev);
	}
	spin_unlock_irq(&dev->lock);
	if (!list_empty(&ios))
		DMWARN_LIMIT("%s: no daemon, failing the bios that wait for one", dev->key);
	dmu_abort_all(&ios, BLK_STS_IOERR);
}
