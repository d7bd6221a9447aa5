// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the daemon says. Every number is checked against the live table before
 * anything changes (K8); a wrong answer to a known question ends with an errno
 * for the daemon and an error for the bios, never with a bio that nobody owns.
 */
#include <linux/bitmap.h>
#include <linux/blkdev.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "dmu.h"

#define F_ID		BIT(0)
#define F_RANGE		BIT(1)
#define F_SEQ		BIT(2)
#define F_GEN		BIT(3)
#define F_SIDES		BIT(4)
#define F_GRANULE	BIT(5)
#define F_ERROR		BIT(6)
#define F_DATA		BIT(7)

#define MAP_FLAGS (DMU_F_COPY_FIRST | DMU_F_OVERLAY | DMU_F_SYNC | DMU_F_VOLATILE | \
		   DMU_F_TEMPORARY | DMU_F_UNCOMMITTED)

/* Whether all that this message does not name is 0. */
static bool msg_clean(const struct dmu_msg *m, u32 fields, u32 flags)
{
	return !(m->flags & ~flags) && !m->reserved &&
	       ((fields & F_ID) || !m->id) &&
	       ((fields & F_RANGE) || (!m->sector && !m->len)) &&
	       ((fields & F_SEQ) || !m->seq) &&
	       ((fields & F_GEN) || !m->gen) &&
	       ((fields & F_SIDES) || (!m->read_sector && !m->write_sector && !m->read_dest &&
				       !m->write_dest)) &&
	       ((fields & F_GRANULE) || !m->granule) &&
	       ((fields & F_ERROR) || !m->error) &&
	       ((fields & F_DATA) || (!m->data && !m->data_len));
}

static int check_range(struct dmu_device *dev, const struct dmu_msg *m)
{
	if (!m->len)
		return -EINVAL;
	if (m->sector >= dev->sectors || m->len > dev->sectors - m->sector)
		return -ERANGE;
	return 0;
}

/* Nothing smaller than a logical block can be read or written below. */
static bool is_aligned(struct dmu_device *dev, const struct dmu_msg *m)
{
	u32 mask = (dev->logical_block_size >> SECTOR_SHIFT) - 1;

	return !((m->sector | m->len | m->read_sector | m->write_sector | m->granule) & mask);
}

static bool same_or_zero(const struct dmu_side *side)
{
	return side->dest < DMU_DEST_ZERO || !side->sector;
}

/* Under lock: the table may not change meanwhile. */
static int check_map(struct dmu_device *dev, const struct dmu_msg *m, const struct dmu_extent *e)
{
	u32 kind = m->flags & (DMU_F_OVERLAY | DMU_F_COPY_FIRST);
	int r = check_range(dev, m);

	if (r)
		return r;
	if (!dev->live)
		return -ENODEV;
	if (!is_aligned(dev, m) || !same_or_zero(&e->read) || !same_or_zero(&e->write))
		return -EINVAL;
	r = dmu_check_side(dev->live, &e->read, e->len, false);
	if (!r)
		r = dmu_check_side(dev->live, &e->write, e->len, true);
	if (r)
		return r;
	if (kind == (DMU_F_OVERLAY | DMU_F_COPY_FIRST))
		return -EINVAL;
	if (kind && (e->read.dest == DMU_DEST_NONE || e->write.dest == DMU_DEST_NONE))
		return -EINVAL;
	if (e->read.dest == DMU_DEST_NONE && e->write.dest == DMU_DEST_NONE)
		return -EINVAL;
	if ((m->flags & DMU_F_OVERLAY) &&
	    (m->flags & DMU_F_TEMPORARY || m->granule > (1U << 16) || !m->granule ||
	     (m->granule & (m->granule - 1))))
		return -EINVAL;
	if (!(m->flags & DMU_F_OVERLAY) && m->granule)
		return -EINVAL;
	if ((m->flags & DMU_F_OVERLAY) &&
	    (m->len - 1) >> ilog2(m->granule) >> ilog2(DMU_LEAF_GRANULES) > U32_MAX)
		return -EINVAL;
	/* What is not remembered cannot be uncommitted; what is never committed not waited for. */
	if ((m->flags & DMU_F_TEMPORARY) && (m->flags & DMU_F_UNCOMMITTED) && !kind)
		return -EINVAL;
	if ((m->flags & DMU_F_SYNC) && (m->flags & DMU_F_VOLATILE))
		return -EINVAL;
	/* A granule of COPY_FIRST is copied as a whole. */
	if ((m->flags & DMU_F_COPY_FIRST) && m->len > (1U << 16))
		return -EINVAL;
	if (m->flags & (DMU_F_UNCOMMITTED | DMU_F_SYNC | DMU_F_VOLATILE) &&
	    e->write.dest == DMU_DEST_NONE)
		return -EINVAL;
	return 0;
}

/* An answer has to serve what was asked. */
static int check_answer(const struct dmu_item *item, const struct dmu_extent *e)
{
	bool write = item->type != DMU_MSG_FAULT || (item->flags & DMU_F_WRITE);

	if (item->type != DMU_MSG_FAULT && item->type != DMU_MSG_DISCARD &&
	    item->type != DMU_MSG_ZERO)
		return -EINVAL;
	if ((write ? e->write.dest : e->read.dest) == DMU_DEST_NONE)
		return -EINVAL;
	if (e->start > item->range.start || e->start + e->len <= item->range.start)
		return -EINVAL;
	return 0;
}

static struct dmu_extent *extent_of_msg(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_extent *e = dmu_extent_alloc(dev);
	unsigned int leaves;

	if (!e)
		return NULL;
	e->start = m->sector;
	e->len = m->len;
	e->read.dest = m->read_dest;
	e->read.sector = m->read_sector;
	e->write.dest = m->write_dest;
	e->write.sector = m->write_sector;
	e->flags = m->flags;
	e->granule = m->granule;
	if (!(m->flags & DMU_F_OVERLAY) || !m->granule)
		return e;
	e->granule_shift = ilog2(m->granule);
	leaves = clamp_t(u64, (m->len >> e->granule_shift) / DMU_LEAF_GRANULES, 1, 4096);
	leaves = roundup_pow_of_two(leaves);
	e->leaf_mask = leaves - 1;
	e->leaves = kvcalloc(leaves, sizeof(*e->leaves), GFP_NOIO | __GFP_NOWARN);
	if (!e->leaves) {
		dmu_extent_put(e);
		return NULL;
	}
	return e;
}

/* A first write in the range goes on under a mapping that was dropped. */
static bool overlaps_orphan(struct dmu_device *dev, u64 start, u64 len)
{
	u64 last = start + len - 1;
	struct dmu_range *r;

	for (r = dmu_range_first(&dev->busy, start, last); r; r = dmu_range_next(r, start, last)) {
		struct dmu_promotion *p = container_of(r, struct dmu_promotion, range);

		if (p->extent->c.dead || (p->leaf && p->leaf->c.dead))
			return true;
	}
	return false;
}

/* Makes a plain e smaller: to what it has in common with [start, end). */
static void extent_clip(struct dmu_extent *e, u64 start, u64 end)
{
	u64 skip = start > e->start ? start - e->start : 0;

	e->len = min(end, e->start + e->len) - (e->start + skip);
	e->start += skip;
	if (e->read.dest < DMU_DEST_ZERO)
		e->read.sector += skip;
	if (e->write.dest < DMU_DEST_ZERO)
		e->write.sector += skip;
}

/* Clips e to the hole among writable extents that holds at; false if there is none. */
static bool extent_clip_to_hole(struct dmu_device *dev, struct dmu_extent *e, u64 at)
{
	u64 from = e->start, start = e->start, end = e->start + e->len;
	struct dmu_extent *other;

	while (from < end && (other = dmu_extent_next(dev, from)) && other->start < end) {
		from = other->start + other->len;
		if (other->write.dest == DMU_DEST_NONE)
			continue;
		if (other->start <= at && at < from)
			return false;
		if (other->start > at)
			end = other->start;
		else
			start = from;
	}
	extent_clip(e, start, end);
	return true;
}

/*
 * How much of a plain answer can be believed: beyond what was asked nothing that
 * was computed before an extent was dropped. False: nothing, ask again.
 */
static bool answer_fits(struct dmu_device *dev, struct dmu_extent *e, const struct dmu_item *item)
{
	bool plain = !(e->flags & (DMU_F_OVERLAY | DMU_F_COPY_FIRST));
	bool orphan = overlaps_orphan(dev, e->start, e->len);

	if (plain && (orphan || item->gen != dev->gen))
		extent_clip(e, item->range.start, item->range.last + 1);
	else if (orphan)
		return false;
	return !(plain && (e->flags & DMU_F_UNCOMMITTED)) ||
	       extent_clip_to_hole(dev, e, item->range.start);
}

static int push_locked(struct dmu_device *dev, struct dmu_extent *e, struct dmu_promotion **p)
{
	bool complete;
	u64 len;
	int r;

	if (overlaps_orphan(dev, e->start, e->len))
		return -ESTALE;
	len = e->len;
	if (*p && (!extent_clip_to_hole(dev, e, e->start) || e->len < len))
		return -EEXIST;
	r = dmu_extent_install(dev, e, false, &complete);
	if (r)
		return r;
	dev->n.pushed++;
	if (*p) {
		dmu_promote_plain(dev, *p, e);
		*p = NULL;
	}
	return 0;
}

/*
 * Puts e where it belongs and lets go who waited for item. *p is used up if the
 * extent counts as promoted at once.
 */
static int answer_locked(struct dmu_device *dev, struct dmu_extent *e, struct dmu_item *item,
			 struct dmu_promotion **p)
{
	bool temporary = e->flags & DMU_F_TEMPORARY, complete = !temporary;
	bool discard = item->type == DMU_MSG_DISCARD;
	struct dmu_io *io;
	LIST_HEAD(ios);
	int r;

	e->epoch = dev->epoch;
	if (!temporary && answer_fits(dev, e, item)) {
		r = dmu_extent_install(dev, e, true, &complete);
		if (r)
			return r;
		if (*p) {
			dmu_promote_plain(dev, *p, e);
			*p = NULL;
		}
	}
	dmu_item_take(dev, item, &ios);
	if (!complete || discard) {
		list_for_each_entry(io, &ios, list) {
			refcount_inc(&e->c.ref);
			dmu_set_answer(io, e);
		}
	}
	dmu_run_list(dev, &ios);
	return 0;
}

static int msg_map(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_promotion *p = NULL;
	struct dmu_item *item = NULL;
	struct dmu_extent *e;
	int r;

	if (!msg_clean(m, F_ID | F_RANGE | F_GEN | F_SIDES | F_GRANULE, MAP_FLAGS))
		return -EINVAL;
	if (!m->id && (m->flags & DMU_F_TEMPORARY))
		return -EINVAL;
	e = extent_of_msg(dev, m);
	if (!e)
		return -ENOMEM;
	if ((m->flags & DMU_F_UNCOMMITTED) && !(m->flags & (DMU_F_OVERLAY | DMU_F_COPY_FIRST))) {
		p = dmu_promotion_alloc(dev);
		if (!p) {
			dmu_extent_put(e);
			return -ENOMEM;
		}
	}
	spin_lock_irq(&dev->lock);
	r = check_map(dev, m, e);
	if (!r && m->id) {
		item = dmu_item_find(dev, m->id);
		r = item ? check_answer(item, e) : -ENOENT;
	} else if (!r && m->gen != dev->gen) {
		r = -ESTALE;
	}
	if (!r)
		r = item ? answer_locked(dev, e, item, &p) : push_locked(dev, e, &p);
	spin_unlock_irq(&dev->lock);
	if (p)
		dmu_promotion_free(dev, p);
	dmu_extent_put(e);
	return r;
}

/* Bits from the daemon are a little-endian string. */
static int leaf_fill(struct dmu_leaf *leaf, const struct dmu_msg *m, u32 granules)
{
	unsigned int i, longs = BITS_TO_LONGS(granules);

	if (m->flags & DMU_F_ALL) {
		if (m->data_len)
			return -EINVAL;
		bitmap_set(leaf->bits, 0, granules);
		return 0;
	}
	if (!m->data_len)
		return m->data ? -EINVAL : 0;
	if (m->data_len != DIV_ROUND_UP(granules, 8))
		return -EINVAL;
	if (copy_from_user(leaf->bits, u64_to_user_ptr(m->data), m->data_len))
		return -EFAULT;
	for (i = 0; i < longs; i++)
		leaf->bits[i] = BITS_PER_LONG == 64 ?
				(unsigned long)le64_to_cpu((__force __le64)leaf->bits[i]) :
				(unsigned long)le32_to_cpu((__force __le32)leaf->bits[i]);
	if (granules < DMU_LEAF_GRANULES)
		bitmap_clear(leaf->bits, granules, DMU_LEAF_GRANULES - granules);
	return 0;
}

/* The overlay and the leaf that [sector, len) of m names exactly. */
static struct dmu_extent *leaf_place(struct dmu_device *dev, const struct dmu_msg *m, u32 *index,
				     u32 *granules)
{
	struct dmu_extent *e = dmu_extent_next(dev, m->sector);
	u64 start, len;

	if (!e || e->start > m->sector || !(e->flags & DMU_F_OVERLAY))
		return NULL;
	*index = ((m->sector - e->start) >> e->granule_shift) / DMU_LEAF_GRANULES;
	dmu_leaf_span(e, *index, &start, &len);
	if (start != m->sector || len != m->len)
		return NULL;
	*granules = (len + e->granule - 1) >> e->granule_shift;
	return e;
}

/* What a volatile overlay has promoted is known only here. */
static void leaf_keep(const struct dmu_extent *e, struct dmu_leaf *leaf)
{
	if ((e->flags & DMU_F_VOLATILE) && !bitmap_empty(leaf->bits, DMU_LEAF_GRANULES))
		leaf->keep = true;
}

static int bitmap_locked(struct dmu_device *dev, const struct dmu_msg *m, struct dmu_leaf *leaf,
			 u32 granules)
{
	struct dmu_item *item = NULL;
	struct dmu_leaf *old;
	struct dmu_extent *e;
	u32 index, now;
	LIST_HEAD(ios);

	if (m->id) {
		item = dmu_item_find(dev, m->id);
		if (!item)
			return -ENOENT;
		if (item->type != DMU_MSG_FAULT || !(item->flags & DMU_F_LEAF) ||
		    item->range.start != m->sector)
			return -EINVAL;
	} else if (m->gen != dev->gen) {
		return -ESTALE;
	}
	e = leaf_place(dev, m, &index, &now);
	if (!e || now != granules)
		return -EINVAL;
	old = dmu_leaf_find(e, index);
	if (!old && !item && overlaps_orphan(dev, m->sector, m->len))
		return -ESTALE;
	if (old) {
		bitmap_or(old->bits, old->bits, leaf->bits, granules);
		leaf_keep(e, old);
	} else if (dev->nr_extents + dev->nr_leaves < dev->max_extents || dmu_evict(dev) || item) {
		refcount_inc(&leaf->c.ref);
		dmu_leaf_insert(dev, e, leaf, index);
		leaf_keep(e, leaf);
	} else {
		return -E2BIG;
	}
	if (!item) {
		dev->n.pushed++;
		return 0;
	}
	dmu_item_take(dev, item, &ios);
	dmu_run_list(dev, &ios);
	return 0;
}

/* With the reserve used up, room is made: the bios under way need this leaf. */
static struct dmu_leaf *leaf_alloc_or_evict(struct dmu_device *dev)
{
	struct dmu_leaf *leaf = dmu_leaf_alloc(dev);

	if (leaf)
		return leaf;
	spin_lock_irq(&dev->lock);
	dmu_evict(dev);
	spin_unlock_irq(&dev->lock);
	rcu_barrier();
	return dmu_leaf_alloc(dev);
}

static int msg_bitmap(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_extent *e = NULL;
	struct dmu_leaf *leaf;
	u32 index, granules;
	int r;

	if (!msg_clean(m, F_ID | F_RANGE | F_GEN | F_DATA, DMU_F_ALL))
		return -EINVAL;
	spin_lock_irq(&dev->lock);
	r = check_range(dev, m);
	if (!r && m->id && !dmu_item_find(dev, m->id))
		r = -ENOENT;
	else if (!r && !m->id && m->gen != dev->gen)
		r = -ESTALE;
	if (!r)
		e = leaf_place(dev, m, &index, &granules);
	spin_unlock_irq(&dev->lock);
	if (r)
		return r;
	if (!e)
		return -EINVAL;
	leaf = leaf_alloc_or_evict(dev);
	if (!leaf)
		return -ENOMEM;
	r = leaf_fill(leaf, m, granules);
	if (!r) {
		spin_lock_irq(&dev->lock);
		r = bitmap_locked(dev, m, leaf, granules);
		spin_unlock_irq(&dev->lock);
	}
	dmu_leaf_put(leaf);
	return r;
}

/*
 * The payload was not in memory and the daemon was killed while it was fetched: it
 * has not answered, and the next daemon is asked.
 */
static bool was_killed(int error)
{
	return error == -EFAULT && fatal_signal_pending(current);
}

static int msg_data(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_item *item;
	struct dmu_io *io;
	LIST_HEAD(ios);
	int r;

	if (!msg_clean(m, F_ID | F_RANGE | F_DATA, 0))
		return -EINVAL;
	if (!m->data_len || m->data_len > DMU_DATA_MAX ||
	    m->data_len != m->len << SECTOR_SHIFT || m->len > DMU_DATA_MAX >> SECTOR_SHIFT)
		return -EINVAL;
	spin_lock_irq(&dev->lock);
	r = check_range(dev, m) ?: is_aligned(dev, m) ? 0 : -EINVAL;
	item = r ? NULL : dmu_item_find(dev, m->id);
	if (!r && !item)
		r = -ENOENT;
	else if (!r && (item->type != DMU_MSG_FAULT || (item->flags & DMU_F_WRITE) ||
			m->sector != item->range.start))
		r = -EINVAL;
	if (!r)
		dmu_item_take(dev, item, &ios);
	spin_unlock_irq(&dev->lock);
	if (r)
		return r;

	/* The bios are ours until they are put on the run list; no lock to fault under. */
	list_for_each_entry(io, &ios, list) {
		if (dmu_io_reads(io))
			r = dmu_fill(io, m->sector, u64_to_user_ptr(m->data), m->data_len);
		if (r)
			break;
	}
	if (r && !was_killed(r)) {
		dmu_abort_all(&ios, BLK_STS_IOERR);
		return r;
	}
	spin_lock_irq(&dev->lock);
	dmu_run_list(dev, &ios);	/* what has no data asks again */
	spin_unlock_irq(&dev->lock);
	return r;
}

/* Some statuses ask the layers above to try again, which a daemon cannot mean. */
static blk_status_t fail_status(int error)
{
	blk_status_t status = error ? errno_to_blk_status(-error) : BLK_STS_IOERR;

	switch (status) {
	case BLK_STS_AGAIN:
	case BLK_STS_RESOURCE:
	case BLK_STS_DEV_RESOURCE:
	case BLK_STS_DM_REQUEUE:
		return BLK_STS_IOERR;
	default:
		return status;
	}
}

static int msg_fail(struct dmu_device *dev, const struct dmu_msg *m)
{
	blk_status_t status;
	struct dmu_item *item;
	LIST_HEAD(ios);

	if (!msg_clean(m, F_ID | F_ERROR, 0) || m->error < 0 || m->error > MAX_ERRNO)
		return -EINVAL;
	status = fail_status(m->error);
	spin_lock_irq(&dev->lock);
	item = dmu_item_find(dev, m->id);
	if (item)
		dmu_item_take(dev, item, &ios);
	spin_unlock_irq(&dev->lock);
	if (!item)
		return -ENOENT;
	dmu_abort_all(&ios, status);
	return 0;
}

/* The daemon has discarded or zeroed the front of these. */
static void skip_and_run(struct dmu_device *dev, struct list_head *ios, u64 len)
{
	struct dmu_io *io;

	list_for_each_entry(io, ios, list)
		bio_advance(dmu_io_bio(io), len << SECTOR_SHIFT);
	dmu_run_list(dev, ios);
}

static int msg_ack(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_item *item;
	LIST_HEAD(ios);
	u64 seq = 0;
	int r = 0;

	if (!msg_clean(m, F_ID, 0))
		return -EINVAL;
	spin_lock_irq(&dev->lock);
	item = dmu_item_find(dev, m->id);
	if (!item) {
		r = -ENOENT;
	} else if (item->type == DMU_MSG_DISCARD || item->type == DMU_MSG_ZERO) {
		u64 start = item->range.start, len = item->range.last - start + 1;

		/* What was read here before is no longer so. */
		if (item->type == DMU_MSG_ZERO) {
			dmu_extent_invalidate(dev, start, len);
			dev->epoch++;
		}
		dmu_item_take(dev, item, &ios);
		skip_and_run(dev, &ios, len);
	} else if (item->type == DMU_MSG_FLUSH || item->type == DMU_MSG_DONE) {
		if (item->type == DMU_MSG_FLUSH)
			seq = item->seq;
		else
			dmu_commit_range(dev, item->range.start, item->range.last, item->seq);
		dmu_item_take(dev, item, &ios);
	} else {
		r = -EINVAL;
	}
	spin_unlock_irq(&dev->lock);
	if (seq)
		r = dmu_commit(dev, seq);
	dmu_abort_all(&ios, r ? BLK_STS_IOERR : BLK_STS_OK);
	return r;
}

static int msg_committed(struct dmu_device *dev, const struct dmu_msg *m)
{
	if (!msg_clean(m, F_SEQ, 0))
		return -EINVAL;
	return dmu_commit(dev, m->seq);
}

static int msg_invalidate(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_invalidation *inv;
	int r;

	if (!msg_clean(m, F_ID | F_RANGE, 0) || !m->id)
		return -EINVAL;
	inv = dmu_invalidation_alloc(dev);
	if (!inv)
		return -ENOMEM;
	inv->id = m->id;
	spin_lock_irq(&dev->lock);
	r = check_range(dev, m);
	if (!r) {
		dmu_extent_invalidate(dev, m->sector, m->len);
		dmu_items_reask(dev, m->sector, m->sector + m->len - 1);
		dev->epoch++;
		dev->n.invalidations++;
		list_add_tail(&inv->list, &dev->invalidating);
		dmu_wake(dev);
		dmu_drain(dev);
	}
	spin_unlock_irq(&dev->lock);
	if (r)
		dmu_invalidation_free(dev, inv);
	return r;
}

static int msg_retry(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_item *item;
	LIST_HEAD(ios);
	int r = 0;

	if (!msg_clean(m, F_ID, 0))
		return -EINVAL;
	spin_lock_irq(&dev->lock);
	item = dmu_item_find(dev, m->id);
	if (!item)
		r = -ENOENT;
	else if (item->type != DMU_MSG_ERROR)
		r = -EINVAL;
	if (!r) {
		dmu_item_take(dev, item, &ios);
		dmu_retry(list_first_entry(&ios, struct dmu_io, list));
	}
	spin_unlock_irq(&dev->lock);
	return r;
}

static int dmu_message_one(struct dmu_device *dev, const struct dmu_msg *m)
{
	switch (m->type) {
	case DMU_MSG_MAP:
		return msg_map(dev, m);
	case DMU_MSG_BITMAP:
		return msg_bitmap(dev, m);
	case DMU_MSG_DATA:
		return msg_data(dev, m);
	case DMU_MSG_FAIL:
		return msg_fail(dev, m);
	case DMU_MSG_ACK:
		return msg_ack(dev, m);
	case DMU_MSG_COMMITTED:
		return msg_committed(dev, m);
	case DMU_MSG_INVALIDATE:
		return msg_invalidate(dev, m);
	case DMU_MSG_RETRY:
		return msg_retry(dev, m);
	default:
		return -EINVAL;
	}
}

static bool is_answer(u32 type)
{
	return type == DMU_MSG_MAP || type == DMU_MSG_BITMAP || type == DMU_MSG_DATA ||
	       type == DMU_MSG_FAIL || type == DMU_MSG_ACK || type == DMU_MSG_RETRY;
}

int dmu_message(struct dmu_device *dev, const struct dmu_msg *m)
{
	struct dmu_item *item;
	LIST_HEAD(ios);
	int r;

	if (READ_ONCE(dev->gone))
		return -ENODEV;
	r = dmu_message_one(dev, m);
	if (!r || r == -ENOMEM || r == -ENOENT || !m->id || !is_answer(m->type) || was_killed(r))
		return r;
	/* A bad answer is an answer: the bios fail (K1). */
	spin_lock_irq(&dev->lock);
	item = dmu_item_find(dev, m->id);
	if (item)
		dmu_item_take(dev, item, &ios);
	spin_unlock_irq(&dev->lock);
	dmu_abort_all(&ios, BLK_STS_IOERR);
	return r;
}
