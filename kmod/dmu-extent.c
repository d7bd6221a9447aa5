// SPDX-License-Identifier: GPL-2.0-only
/*
 * The extent tree. Readers walk it under RCU and check extent_seq afterwards, so
 * a walk that met a rotation is done again; a node stays valid for the grace
 * period. Writers hold the lock.
 *
 * What may replace what: an extent with a write side goes away only by
 * INVALIDATE, eviction or a table that it does not fit; an answer only fills the
 * holes around it. So an answer made before a promotion can never undo it. A
 * read-only extent is cut by an answer. For the same reason nothing is evicted
 * that an unanswered FAULT overlaps.
 */
#include <linux/interval_tree_generic.h>
#include <linux/slab.h>

#include "dmu.h"

#define DMU_EVICT_SCAN 64	/* looks at most at so many to evict one */
#define DMU_KIND (DMU_F_COPY_FIRST | DMU_F_OVERLAY)

#define RANGE_START(r) ((r)->start)
#define RANGE_LAST(r) ((r)->last)
INTERVAL_TREE_DEFINE(struct dmu_range, rb, u64, subtree_last, RANGE_START, RANGE_LAST,
		     static, dmu_it)

void dmu_range_insert(struct dmu_range *r, struct rb_root_cached *root)
{
	dmu_it_insert(r, root);
}

void dmu_range_remove(struct dmu_range *r, struct rb_root_cached *root)
{
	dmu_it_remove(r, root);
}

struct dmu_range *dmu_range_first(struct rb_root_cached *root, u64 start, u64 last)
{
	return dmu_it_iter_first(root, start, last);
}

struct dmu_range *dmu_range_next(struct dmu_range *r, u64 start, u64 last)
{
	return dmu_it_iter_next(r, start, last);
}

static u64 extent_end(const struct dmu_extent *e)
{
	return READ_ONCE(e->start) + READ_ONCE(e->len);
}

/* The extent that holds sector, else with next the first one after it, or NULL. */
static struct dmu_extent *dmu_extent_walk(struct dmu_device *dev, u64 sector, bool next)
{
	struct rb_node *n = rcu_dereference_raw(dev->extents.rb_node);
	struct dmu_extent *after = NULL;

	while (n) {
		struct dmu_extent *e = rb_entry(n, struct dmu_extent, rb);

		if (sector < READ_ONCE(e->start)) {
			after = e;
			n = rcu_dereference_raw(n->rb_left);
		} else if (sector >= extent_end(e)) {
			n = rcu_dereference_raw(n->rb_right);
		} else {
			return e;
		}
	}
	return next ? after : NULL;
}

bool dmu_extent_find(struct dmu_device *dev, u64 sector, struct dmu_map *map, u64 *next)
{
	struct dmu_extent *e;
	unsigned int seq;
	bool found;

	do {
		seq = read_seqcount_begin(&dev->extent_seq);
		e = dmu_extent_walk(dev, sector, true);
		*next = e ? READ_ONCE(e->start) : U64_MAX;
		found = *next <= sector;
		if (found)
			dmu_extent_snapshot(e, map);
	} while (read_seqcount_retry(&dev->extent_seq, seq));

	if (found && !READ_ONCE(e->c.accessed))
		WRITE_ONCE(e->c.accessed, true);
	return found;
}

struct dmu_extent *dmu_extent_next(struct dmu_device *dev, u64 sector)
{
	lockdep_assert_held(&dev->lock);
	return dmu_extent_walk(dev, sector, true);
}

static void dmu_extent_link(struct dmu_device *dev, struct dmu_extent *e)
{
	struct rb_node **link = &dev->extents.rb_node, *parent = NULL;

	while (*link) {
		struct dmu_extent *at = rb_entry(*link, struct dmu_extent, rb);

		parent = *link;
		link = e->start < at->start ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node_rcu(&e->rb, parent, link);
	rb_insert_color(&e->rb, &dev->extents);
}

static void dmu_extent_insert(struct dmu_device *dev, struct dmu_extent *e)
{
	write_seqcount_begin(&dev->extent_seq);
	dmu_extent_link(dev, e);
	write_seqcount_end(&dev->extent_seq);
	e->c.accessed = true;
	list_add_tail(&e->c.lru, &dev->lru);
	dev->nr_extents++;
}

static void dmu_extent_kill(struct dmu_device *dev, struct dmu_extent *e)
{
	lockdep_assert_held(&dev->lock);
	if (e->leaves)
		dmu_leaf_kill_range(dev, e, 0, U64_MAX);
	write_seqcount_begin(&dev->extent_seq);
	rb_erase(&e->rb, &dev->extents);
	write_seqcount_end(&dev->extent_seq);
	e->c.dead = true;
	list_del_init(&e->c.lru);
	dev->nr_extents--;
	dmu_extent_put(e);
}

static void side_advance(struct dmu_side *side, u64 sectors)
{
	if (side->dest < DMU_DEST_ZERO)
		side->sector += sectors;
}

static bool side_follows(const struct dmu_side *a, const struct dmu_side *b, u64 sectors)
{
	struct dmu_side end = *a;

	side_advance(&end, sectors);
	return end.dest == b->dest && end.sector == b->sector;
}

static bool is_plain(const struct dmu_extent *e)
{
	return !(e->flags & DMU_KIND);
}

/* Takes [start, end) out of a plain extent. What lies behind it may be forgotten. */
static void dmu_extent_cut(struct dmu_device *dev, struct dmu_extent *e, u64 start, u64 end)
{
	struct dmu_extent *rest;

	if (extent_end(e) > end) {
		rest = dmu_extent_piece(dev);
		if (rest) {
			rest->start = end;
			rest->len = extent_end(e) - end;
			rest->read = e->read;
			rest->write = e->write;
			side_advance(&rest->read, end - e->start);
			side_advance(&rest->write, end - e->start);
			rest->flags = e->flags;
		}
	} else {
		rest = NULL;
	}
	if (e->start < start) {
		write_seqcount_begin(&dev->extent_seq);
		WRITE_ONCE(e->len, start - e->start);
		write_seqcount_end(&dev->extent_seq);
	} else {
		dmu_extent_kill(dev, e);
	}
	if (rest)
		dmu_extent_insert(dev, rest);
}

/* Joins e to the extent before it where both say the same. */
static void dmu_extent_merge(struct dmu_device *dev, struct dmu_extent *e)
{
	struct rb_node *n = rb_prev(&e->rb);
	struct dmu_extent *left = n ? rb_entry(n, struct dmu_extent, rb) : NULL;
	u64 len;

	if (!left || !is_plain(left) || !is_plain(e) || left->flags != e->flags ||
	    extent_end(left) != e->start ||
	    !side_follows(&left->read, &e->read, left->len) ||
	    !side_follows(&left->write, &e->write, left->len))
		return;
	len = left->len + e->len;
	/* For a moment both have the range, and say the same of it. */
	write_seqcount_begin(&dev->extent_seq);
	WRITE_ONCE(left->len, len);
	write_seqcount_end(&dev->extent_seq);
	dmu_extent_kill(dev, e);
}

static bool dmu_extent_same(const struct dmu_extent *a, const struct dmu_extent *b)
{
	return a->start == b->start && a->len == b->len && a->flags == b->flags &&
	       a->granule == b->granule && side_follows(&a->read, &b->read, 0) &&
	       side_follows(&a->write, &b->write, 0);
}

static bool has_room(struct dmu_device *dev)
{
	return dev->nr_extents + dev->nr_leaves < dev->max_extents || dmu_evict(dev);
}

/* One piece of a plain e in a hole [start, end). */
static bool dmu_extent_fill(struct dmu_device *dev, const struct dmu_extent *e, u64 start, u64 end)
{
	struct dmu_extent *piece = has_room(dev) ? dmu_extent_piece(dev) : NULL;
	struct rb_node *next;

	if (!piece)
		return false;
	piece->start = start;
	piece->len = end - start;
	piece->read = e->read;
	piece->write = e->write;
	side_advance(&piece->read, start - e->start);
	side_advance(&piece->write, start - e->start);
	piece->flags = e->flags;
	dmu_extent_insert(dev, piece);
	next = rb_next(&piece->rb);
	if (next)
		dmu_extent_merge(dev, rb_entry(next, struct dmu_extent, rb));
	dmu_extent_merge(dev, piece);
	return true;
}

/* False if a piece is missing: it will fault again. */
static bool dmu_extent_install_plain(struct dmu_device *dev, const struct dmu_extent *e)
{
	u64 at = e->start, end = extent_end(e);
	bool complete = true;

	while (at < end) {
		struct dmu_extent *other = dmu_extent_walk(dev, at, true);
		u64 hole_end;

		if (other && other->start <= at) {
			at = extent_end(other);
			continue;
		}
		hole_end = other ? min(end, other->start) : end;
		complete &= dmu_extent_fill(dev, e, at, hole_end);
		at = hole_end;
	}
	return complete;
}

/*
 * Puts e, or of a plain one the parts that are in holes, into the tree. Takes a
 * reference of its own if it keeps e. An answer first cuts what has no write side.
 */
int dmu_extent_install(struct dmu_device *dev, struct dmu_extent *e, bool answer,
		       bool *complete)
{
	u64 end = extent_end(e);
	struct dmu_extent *other;
	u64 at = e->start;

	lockdep_assert_held(&dev->lock);
	while (answer && (other = dmu_extent_walk(dev, at, true)) && other->start < end) {
		at = extent_end(other);
		if (is_plain(other) && other->write.dest == DMU_DEST_NONE &&
		    e->write.dest != DMU_DEST_NONE)
			dmu_extent_cut(dev, other, e->start, end);
		if (at >= end)
			break;
	}
	if (is_plain(e)) {
		*complete = dmu_extent_install_plain(dev, e);
		return 0;
	}
	*complete = true;
	other = dmu_extent_walk(dev, e->start, true);
	if (other && other->start < end) {
		if (dmu_extent_same(other, e))
			return 0;
		return answer ? -EBUSY : -EEXIST;
	}
	/* Bios wait for an answer; it may go over the limit until something can go. */
	if (!has_room(dev) && !answer)
		return -E2BIG;
	refcount_inc(&e->c.ref);
	dmu_extent_insert(dev, e);
	return 0;
}

void dmu_extent_invalidate(struct dmu_device *dev, u64 start, u64 len)
{
	u64 end = start + len, at = start;
	struct dmu_extent *e;

	while (at < end && (e = dmu_extent_next(dev, at)) && e->start < end) {
		at = extent_end(e);
		if ((e->flags & DMU_F_OVERLAY) && (e->start < start || at > end))
			dmu_leaf_kill_range(dev, e, start, end);
		else
			dmu_extent_kill(dev, e);
	}
	dev->gen++;
}

/* 0, or why this side cannot hold len sectors. */
int dmu_check_side(struct dmu_target *t, const struct dmu_side *side, u64 len, bool write)
{
	if (side->dest == DMU_DEST_NONE)
		return 0;
	if (side->dest == DMU_DEST_ZERO)
		return write ? -EINVAL : 0;
	if (side->dest >= t->num_dests)
		return -ENXIO;
	if (write && !t->dests[side->dest].writable)
		return -EROFS;
	if (side->sector > t->dests[side->dest].sectors ||
	    len > t->dests[side->dest].sectors - side->sector)
		return -ERANGE;
	return 0;
}

/* A table may have come whose destinations have larger blocks. */
static bool cuts_blocks(struct dmu_device *dev, const struct dmu_extent *e)
{
	u32 mask = (dev->logical_block_size >> SECTOR_SHIFT) - 1;

	return (e->start | e->len | e->read.sector | e->write.sector | e->granule) & mask;
}

void dmu_extent_drop_misfits(struct dmu_device *dev, struct dmu_target *t)
{
	struct rb_node *n = rb_first(&dev->extents);

	while (n) {
		struct dmu_extent *e = rb_entry(n, struct dmu_extent, rb);

		n = rb_next(n);
		if (extent_end(e) > t->ti->len || cuts_blocks(dev, e) ||
		    dmu_check_side(t, &e->read, e->len, false) ||
		    dmu_check_side(t, &e->write, e->len, true))
			dmu_extent_kill(dev, e);
	}
	dev->gen++;
}

/* What an earlier daemon gave out and nobody used: a new one does not know of it. */
void dmu_extent_drop_unbacked(struct dmu_device *dev)
{
	struct rb_node *n = rb_first(&dev->extents);

	while (n) {
		struct dmu_extent *e = rb_entry(n, struct dmu_extent, rb);

		n = rb_next(n);
		if ((e->flags & DMU_F_COPY_FIRST) && !e->promoted)
			dmu_extent_kill(dev, e);
	}
	dev->gen++;
}

void dmu_extent_drop_all(struct dmu_device *dev)
{
	struct rb_node *n;

	while ((n = rb_first(&dev->extents)))
		dmu_extent_kill(dev, rb_entry(n, struct dmu_extent, rb));
}

static bool is_wanted(struct dmu_device *dev, u64 start, u64 len)
{
	u64 last = start + len - 1;

	return dmu_range_first(&dev->busy, start, last) ||
	       dmu_range_first(&dev->faults, start, last);
}

static bool dmu_evict_leaf(struct dmu_device *dev, struct dmu_leaf *leaf)
{
	u64 start, len;

	dmu_leaf_span(leaf->extent, leaf->index, &start, &len);
	if (leaf->keep || is_wanted(dev, start, len) ||
	    dmu_range_first(&dev->uncommitted, start, start + len - 1))
		return false;
	dmu_leaf_kill(dev, leaf);
	return true;
}

static bool dmu_evict_extent(struct dmu_device *dev, struct dmu_extent *e)
{
	if ((e->flags & (DMU_F_OVERLAY | DMU_F_VOLATILE)) || is_wanted(dev, e->start, e->len))
		return false;
	dmu_extent_kill(dev, e);
	return true;
}

/* One round of a second-chance clock, or, if hot, without the chance. */
static bool dmu_evict_round(struct dmu_device *dev, bool hot)
{
	struct dmu_cached *c;
	int i;

	for (i = 0; i < DMU_EVICT_SCAN && !list_empty(&dev->lru); i++) {
		c = list_first_entry(&dev->lru, struct dmu_cached, lru);
		list_move_tail(&c->lru, &dev->lru);
		if (c->accessed && !hot) {
			c->accessed = false;
			continue;
		}
		if (c->is_leaf ? dmu_evict_leaf(dev, container_of(c, struct dmu_leaf, c)) :
				 dmu_evict_extent(dev, container_of(c, struct dmu_extent, c)))
			return true;
	}
	return false;
}

/*
 * Forgets one leaf or extent. Never without a daemon (K7). The generation moves on:
 * what the daemon pushes next may rest on what is gone.
 */
bool dmu_evict(struct dmu_device *dev)
{
	lockdep_assert_held(&dev->lock);
	if (!dev->channel || (!dmu_evict_round(dev, false) && !dmu_evict_round(dev, true)))
		return false;
	dev->n.evictions++;
	dev->gen++;
	return true;
}
