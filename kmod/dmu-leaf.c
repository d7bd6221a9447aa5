// SPDX-License-Identifier: GPL-2.0-only
/*
 * Leaves: the promoted bits of an overlay, a page of them at a time, loaded when
 * a bio needs them. A leaf that is not there is unknown, not empty.
 */
#include "dmu.h"

/* The virtual sectors of a leaf; the last one of an extent may be short. */
void dmu_leaf_span(const struct dmu_extent *e, u32 index, u64 *start, u64 *len)
{
	u64 size = (u64)DMU_LEAF_GRANULES << e->granule_shift;
	u64 off = index * size;

	*start = e->start + off;
	*len = min(size, e->len - off);
}

/* Zeroed, referenced once; NULL if even the reserve is gone. */
struct dmu_leaf *dmu_leaf_alloc(struct dmu_device *dev)
{
	struct dmu_leaf *leaf = mempool_alloc(&dev->leaf_pool, GFP_NOWAIT | __GFP_NOWARN);

	if (!leaf)
		return NULL;
	memset(leaf, 0, sizeof(*leaf));
	refcount_set(&leaf->c.ref, 1);
	leaf->c.dev = dev;
	leaf->c.is_leaf = true;
	return leaf;
}

void dmu_leaf_insert(struct dmu_device *dev, struct dmu_extent *e, struct dmu_leaf *leaf,
		     u32 index)
{
	lockdep_assert_held(&dev->lock);
	leaf->extent = e;
	leaf->index = index;
	leaf->c.accessed = true;
	hlist_add_head_rcu(&leaf->hash, dmu_leaf_bucket(e, index));
	list_add_tail(&leaf->c.lru, &dev->lru);
	dev->nr_leaves++;
}

void dmu_leaf_kill(struct dmu_device *dev, struct dmu_leaf *leaf)
{
	lockdep_assert_held(&dev->lock);
	leaf->c.dead = true;
	hlist_del_rcu(&leaf->hash);
	list_del(&leaf->c.lru);
	dev->nr_leaves--;
	dmu_leaf_put(leaf);
}

/* Kills what overlaps virtual [start, end). */
void dmu_leaf_kill_range(struct dmu_device *dev, struct dmu_extent *e, u64 start, u64 end)
{
	struct hlist_node *next;
	struct dmu_leaf *leaf;
	u64 s, len;
	u32 i;

	for (i = 0; i <= e->leaf_mask; i++) {
		hlist_for_each_entry_safe(leaf, next, &e->leaves[i], hash) {
			dmu_leaf_span(e, leaf->index, &s, &len);
			if (s < end && s + len > start)
				dmu_leaf_kill(dev, leaf);
		}
	}
}
