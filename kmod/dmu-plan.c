// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is to become of a bio: the decision table of the target, without a lock
 * and without a side effect.
 *
 *	mapping			read		write		discard
 *	none			ask		ask		ask
 *	plain			read side	write side	ask
 *	 side missing		ask		ask		ask
 *	overlay, promoted	write side	write side	write side
 *	overlay, not promoted	read side	promote		skip
 *	overlay, bits unknown	ask for leaf	ask for leaf	skip
 *
 * COPY_FIRST is an overlay of one granule, its bit in the extent. WRITE_ZEROES
 * is a write. A bio is cut only where an extent, a leaf or a run of bits ends.
 */
#include <linux/bitmap.h>

#include "dmu.h"

static void plan_ask(struct dmu_plan *plan, u32 len)
{
	plan->verdict = DMU_ASK;
	plan->ask_start = plan->start;
	plan->ask_len = len;
	plan->len = len;
	plan->map.flags = 0;
}

static void plan_side(struct dmu_plan *plan, const struct dmu_side *side)
{
	if (side->dest == DMU_DEST_NONE) {
		plan_ask(plan, plan->len);
	} else if (side->dest == DMU_DEST_ZERO) {
		plan->verdict = DMU_ZEROES;
	} else {
		plan->verdict = DMU_REMAP;
		plan->to.dest = side->dest;
		plan->to.sector = side->sector + (plan->start - plan->map.start);
	}
}

static void plan_granule(struct dmu_plan *plan, enum req_op op, bool promoted)
{
	const struct dmu_map *map = &plan->map;

	if (promoted)
		plan_side(plan, &map->write);
	else if (op == REQ_OP_DISCARD)
		plan->verdict = DMU_SKIP;
	else if (op_is_write(op))
		plan->verdict = DMU_PROMOTE;
	else
		plan_side(plan, &map->read);
}

static void plan_overlay(struct dmu_plan *plan, enum req_op op)
{
	const struct dmu_map *map = &plan->map;
	u32 shift = map->granule_shift;
	u64 off = plan->start - map->start;
	u64 granule = off >> shift, last = (off + plan->len - 1) >> shift;
	u32 index = granule / DMU_LEAF_GRANULES, bit = granule % DMU_LEAF_GRANULES, end;
	struct dmu_leaf *leaf = dmu_leaf_find(map->extent, index);
	bool promoted;

	/* Bits from bit to end, exclusive, concern this bio; all in one leaf. */
	end = min_t(u64, last - granule + bit + 1, DMU_LEAF_GRANULES);
	if (leaf) {
		if (!READ_ONCE(leaf->c.accessed))
			WRITE_ONCE(leaf->c.accessed, true);
		promoted = test_bit(bit, leaf->bits);
		/* From the next one on: the first may be set between the two looks. */
		if (end > bit + 1)
			end = promoted ? find_next_zero_bit(leaf->bits, end, bit + 1) :
					 find_next_bit(leaf->bits, end, bit + 1);
	}
	plan->leaf = leaf;
	plan->len = min_t(u64, plan->len, ((granule - bit + end) << shift) - off);
	if (leaf) {
		plan_granule(plan, op, promoted);
	} else if (op == REQ_OP_DISCARD) {
		plan->verdict = DMU_SKIP;
	} else {
		plan->verdict = DMU_ASK_LEAF;
		dmu_leaf_span(map->extent, index, &plan->ask_start, &plan->ask_len);
	}
}

void dmu_plan(struct dmu_io *io, enum req_op op, u64 start, u32 len, struct dmu_plan *plan)
{
	struct dmu_map *map = &plan->map;
	struct dmu_device *dev = io->t->dev;
	struct dmu_extent *answer = io->answer;
	bool for_this;
	u64 next;

	plan->start = start;
	plan->leaf = NULL;
	/* After dmu_inflight_get, so that a drain waits for who still sees the old epoch. */
	for_this = answer && answer->epoch == READ_ONCE(dev->epoch) &&
		   start >= answer->start && start - answer->start < answer->len;
	if (for_this) {
		dmu_extent_snapshot(answer, map);
	} else if (!dmu_extent_find(dev, start, map, &next)) {
		/* What the next extent serves is not asked for. */
		plan_ask(plan, min_t(u64, len, next - start));
		return;
	}
	plan->len = min_t(u64, len, map->start + map->len - start);
	if (map->flags & DMU_F_OVERLAY)
		plan_overlay(plan, op);
	else if ((map->flags & DMU_F_COPY_FIRST) && !map->promoted)
		plan_granule(plan, op, false);
	else if (op == REQ_OP_DISCARD && !for_this)
		plan_ask(plan, plan->len);
	else
		plan_side(plan, op_is_write(op) ? &map->write : &map->read);
}
