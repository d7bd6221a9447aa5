// SPDX-License-Identifier: GPL-2.0-only
/*
 * The life of a bio.
 *
 * dmu_map does at once what needs no waiting: it takes the front part of the bio
 * that one mapping serves (dm sends the rest again) and remaps it. Everything
 * else goes through dmu_run in the device's worker: a bio that was parked, and
 * discards. There a bio may be answered in pieces; dm's per-bio data does not
 * exist for pieces, so each is a clone of ours with a dmu_part in front (K9).
 *
 * dmu_end_io sees each clone of dm's when it is done at the destinations. A write
 * that must wait for metadata is held there, as is one that found no space.
 */
#include <linux/highmem.h>
#include <linux/uaccess.h>

#include "dmu.h"

void dmu_run_later(struct dmu_device *dev, struct dmu_io *io)
{
	lockdep_assert_held(&dev->lock);
	list_add_tail(&io->list, &dev->run);
	queue_work(dev->wq, &dev->run_work);
}

void dmu_run_list(struct dmu_device *dev, struct list_head *ios)
{
	lockdep_assert_held(&dev->lock);
	if (list_empty(ios))
		return;
	list_splice_tail_init(ios, &dev->run);
	queue_work(dev->wq, &dev->run_work);
}

/*
 * What does not go on in map goes on in a worker: of the submitter's cgroup still,
 * and not polled for, since dm polls for its clone and not for our pieces.
 */
static void dmu_leave_map(struct dmu_io *io)
{
	struct bio *bio = dmu_io_bio(io);

	bio_associate_blkg(bio);
	bio_clear_polled(bio);
}

static void dmu_run_unlocked(struct dmu_io *io)
{
	struct dmu_device *dev = io->t->dev;
	unsigned long irq;

	spin_lock_irqsave(&dev->lock, irq);
	dmu_run_later(dev, io);
	spin_unlock_irqrestore(&dev->lock, irq);
}

/* Takes over the caller's reference; NULL to drop what there was. */
void dmu_set_answer(struct dmu_io *io, struct dmu_extent *e)
{
	if (io->answer)
		dmu_extent_put(io->answer);
	io->answer = e;
}

/* Completion is decided: past all holds. */
static void dmu_finish(struct dmu_io *io, blk_status_t status)
{
	struct bio *bio = dmu_io_bio(io);

	dmu_set_answer(io, NULL);
	io->flags |= DMU_IO_FINAL;
	bio->bi_status = status;
	bio_endio(bio);
}

/* The clone, or all its parts, are done at the destinations. */
static void dmu_io_put(struct dmu_io *io)
{
	struct bio *bio;

	if (!atomic_dec_and_test(&io->parts))
		return;
	if ((io->flags & DMU_IO_FLUSH) && !io->status) {
		dmu_ask(io, DMU_MSG_FLUSH, 0, 0, 0);
		return;
	}
	bio = dmu_io_bio(io);
	bio->bi_status = io->status;
	bio_endio(bio);
}

/* Ends an io that waited. Its parts, if any, still come in first. */
void dmu_abort(struct dmu_io *io, blk_status_t status)
{
	if (io->flags & DMU_IO_HELD) {
		dmu_finish(io, status);
		return;
	}
	io->flags |= DMU_IO_FINAL;
	io->status = status;
	dmu_io_put(io);
}

void dmu_abort_all(struct list_head *ios, blk_status_t status)
{
	struct dmu_io *io, *next;

	list_for_each_entry_safe(io, next, ios, list)
		dmu_abort(io, status);
}

/* From the beginning: the daemon says that there is room now. */
void dmu_retry(struct dmu_io *io)
{
	struct bio *bio = dmu_io_bio(io);

	bio->bi_iter = io->iter;
	bio->bi_opf = io->opf & ~REQ_NOWAIT;
	bio->bi_status = BLK_STS_OK;
	io->status = BLK_STS_OK;
	io->to.dest = DMU_DEST_NONE;
	io->to.sector = 0;
	io->flags &= ~(DMU_IO_HELD | DMU_IO_NOWAIT);
	io->flags |= DMU_IO_WAS_SENT;
	atomic_set(&io->parts, 1);
	dmu_run_later(io->t->dev, io);
}

static void dmu_aim(struct dmu_io *io, struct bio *bio, const struct dmu_side *to)
{
	bio_set_dev(bio, io->t->dests[to->dest].dm->bdev);
	bio->bi_iter.bi_sector = to->sector;
}

static void dmu_zero_front(struct bio *bio, u32 sectors)
{
	struct bvec_iter iter, start = bio->bi_iter;
	struct bio_vec bv;

	start.bi_size = sectors << SECTOR_SHIFT;
	__bio_for_each_segment(bv, bio, iter, start)
		memzero_bvec(&bv);
}

/*
 * The front of a bio with the bytes of DATA; what is left faults again. Whoever
 * answers owns the io for the time.
 */
int dmu_fill(struct dmu_io *io, u64 sector, const void __user *data, u32 bytes)
{
	struct bio *bio = dmu_io_bio(io);
	struct bvec_iter iter, start = bio->bi_iter;
	u64 skip = (start.bi_sector - sector) << SECTOR_SHIFT;
	struct bio_vec bv;

	if (start.bi_sector < sector || skip >= bytes)
		return 0;
	start.bi_size = min_t(u64, start.bi_size, bytes - skip);
	data += skip;
	__bio_for_each_segment(bv, bio, iter, start) {
		char *to = kmap_local_page(bv.bv_page);
		unsigned long left = copy_from_user(to + bv.bv_offset, data, bv.bv_len);

		kunmap_local(to);
		if (left)
			return -EFAULT;
		flush_dcache_page(bv.bv_page);
		data += bv.bv_len;
	}
	bio_advance(bio, start.bi_size);
	return 0;
}

static void dmu_part_end_io(struct bio *bio)
{
	struct dmu_part *part = container_of(bio, struct dmu_part, bio);
	struct dmu_io *io = part->io;
	blk_status_t status = bio->bi_status;

	if (part->promotion) {
		status = status ?: part->promotion->status;
		dmu_promote_end(part->promotion, !status);
	}
	if (part->phase != DMU_NO_PHASE)
		dmu_inflight_put(io->t->dev, part->phase);
	if (status && !READ_ONCE(io->status)) {
		if (status == BLK_STS_NOSPC)
			io->to = part->to;
		WRITE_ONCE(io->status, status);
	}
	bio_put(bio);
	dmu_io_put(io);
}

static struct dmu_part *dmu_part_init(struct dmu_io *io, struct bio *bio, u8 phase)
{
	struct dmu_part *part = container_of(bio, struct dmu_part, bio);

	part->io = io;
	part->promotion = NULL;
	part->phase = phase;
	bio->bi_end_io = dmu_part_end_io;
	atomic_inc(&io->parts);
	return part;
}

/* Empty flushes to all that is written to. In the worker: it allocates several. */
static void dmu_flush_dests(struct dmu_io *io)
{
	struct dmu_target *t = io->t;
	struct bio *bio;
	unsigned int i;

	atomic_set(&io->parts, 1);
	for (i = 0; i < t->num_dests; i++) {
		if (!t->dests[i].writable)
			continue;
		bio = bio_alloc_bioset(t->dests[i].dm->bdev, 0,
				       REQ_OP_WRITE | REQ_PREFLUSH | REQ_SYNC, GFP_NOIO,
				       &t->dev->bs);
		dmu_part_init(io, bio, DMU_NO_PHASE);
		submit_bio_noacct(bio);
	}
	dmu_io_put(io);
}

/* What to submit for the front len sectors of an io: the clone itself, or a part. */
static struct bio *dmu_carve(struct dmu_io *io, u32 len, u8 phase, const struct dmu_side *to,
			     struct dmu_promotion *p)
{
	struct bio *bio = dmu_io_bio(io), *piece;
	struct dmu_part *part;

	if (!(io->flags & DMU_IO_WAS_SENT) && bio->bi_iter.bi_size == io->iter.bi_size &&
	    len == bio_sectors(bio)) {
		io->flags |= DMU_IO_WAS_SENT;
		io->phase = phase;
		io->promotion = p;
		io->to = *to;
		dmu_set_answer(io, NULL);
		dmu_aim(io, bio, to);
		return bio;
	}
	piece = bio_alloc_clone(io->t->dests[to->dest].dm->bdev, bio, GFP_NOIO, &io->t->dev->bs);
	part = dmu_part_init(io, piece, phase);
	part->promotion = p;
	part->to = *to;
	piece->bi_iter.bi_size = len << SECTOR_SHIFT;
	piece->bi_iter.bi_sector = to->sector;
	bio_advance(bio, len << SECTOR_SHIFT);
	return piece;
}

/* How a write under a SYNC extent is to be held. */
static u8 dmu_sync_flags(const struct dmu_plan *plan, enum req_op op)
{
	if (likely(!(plan->map.flags & DMU_F_SYNC)) || !op_is_write(op) || op == REQ_OP_DISCARD)
		return 0;
	return plan->map.flags & (DMU_F_OVERLAY | DMU_F_COPY_FIRST) ? DMU_IO_SYNC : DMU_IO_DONE;
}

static u32 dmu_ask_type(enum req_op op)
{
	switch (op) {
	case REQ_OP_DISCARD:
		return DMU_MSG_DISCARD;
	case REQ_OP_WRITE_ZEROES:
		return DMU_MSG_ZERO;
	default:
		return DMU_MSG_FAULT;
	}
}

static void dmu_ask_plan(struct dmu_io *io, const struct dmu_plan *plan, enum req_op op)
{
	if (plan->verdict == DMU_ASK_LEAF)
		dmu_ask(io, DMU_MSG_FAULT,
			DMU_F_LEAF | (op_is_write(op) ? DMU_F_WRITE : DMU_F_READ),
			plan->ask_start, plan->ask_len);
	else if (dmu_ask_type(op) == DMU_MSG_FAULT)
		dmu_ask(io, DMU_MSG_FAULT, op_is_write(op) ? DMU_F_WRITE : DMU_F_READ,
			plan->ask_start, plan->ask_len);
	else
		dmu_ask(io, dmu_ask_type(op), 0, plan->ask_start, plan->ask_len);
}

static bool dmu_discards(struct dmu_io *io, const struct dmu_side *to)
{
	return bdev_max_discard_sectors(io->t->dests[to->dest].dm->bdev);
}

static void dmu_submit(struct bio *bio, struct dmu_promotion *p)
{
	if (!p || !dmu_promote_copies(p, bio))
		submit_bio_noacct(bio);
}

enum dmu_step { DMU_ON, DMU_OUT };

/* The front of an io that runs. DMU_OUT: it is no longer the caller's. */
static enum dmu_step dmu_step(struct dmu_io *io)
{
	struct bio *bio = dmu_io_bio(io), *piece;
	struct dmu_device *dev = io->t->dev;
	struct dmu_promotion *p = NULL;
	enum req_op op = bio_op(bio);
	enum dmu_begin begun = DMU_BEGUN;
	struct dmu_plan plan;
	u8 phase;

	rcu_read_lock();
	phase = dmu_inflight_get(dev);
	dmu_plan(io, op, bio->bi_iter.bi_sector, bio_sectors(bio), &plan);
	if (plan.verdict == DMU_PROMOTE)
		begun = dmu_promote_begin(io, &plan, &p);
	rcu_read_unlock();

	if (begun != DMU_BEGUN || (plan.verdict != DMU_REMAP && plan.verdict != DMU_PROMOTE) ||
	    (op == REQ_OP_DISCARD && !dmu_discards(io, &plan.to))) {
		dmu_inflight_put(dev, phase);
		if (begun == DMU_AGAIN)
			return DMU_ON;
		if (begun == DMU_REFUSED || WARN_ON_ONCE(begun == DMU_WOULD_PARK))
			dmu_abort(io, io->status ?: BLK_STS_IOERR);
		else if (begun == DMU_BEGUN &&
			 (plan.verdict == DMU_ASK || plan.verdict == DMU_ASK_LEAF))
			dmu_ask_plan(io, &plan, op);
		else if (begun == DMU_BEGUN)
			goto here;
		return DMU_OUT;
	}
	io->flags |= dmu_sync_flags(&plan, op);
	piece = dmu_carve(io, plan.len, phase, &plan.to, p);
	dmu_submit(piece, p);
	return piece == bio ? DMU_OUT : DMU_ON;
here:
	if (plan.verdict == DMU_ZEROES)
		dmu_zero_front(bio, plan.len);
	bio_advance(bio, plan.len << SECTOR_SHIFT);
	return DMU_ON;
}

static void dmu_run(struct dmu_io *io)
{
	struct bio *bio = dmu_io_bio(io);

	if (io->flags & DMU_IO_FLUSH) {
		dmu_flush_dests(io);
		return;
	}
	while (bio->bi_iter.bi_size && !READ_ONCE(io->status))
		if (dmu_step(io) == DMU_OUT)
			return;
	dmu_set_answer(io, NULL);
	dmu_io_put(io);
}

/* The copies of a promotion are done; its bio follows, from the worker. */
void dmu_copied(struct dmu_promotion *p)
{
	struct dmu_device *dev = p->dev;
	unsigned long irq;

	spin_lock_irqsave(&dev->lock, irq);
	list_add_tail(&p->list, &dev->copied);
	queue_work(dmu_copied_wq, &dev->copied_work);
	spin_unlock_irqrestore(&dev->lock, irq);
}

/*
 * Where a second copy failed, too, the write goes out all the same: its own error may
 * say that there is no room, and if it has none, that of the copy counts.
 */
void dmu_copied_work(struct work_struct *work)
{
	struct dmu_device *dev = container_of(work, struct dmu_device, copied_work);
	struct dmu_promotion *p, *next;
	LIST_HEAD(copied);

	spin_lock_irq(&dev->lock);
	list_splice_init(&dev->copied, &copied);
	spin_unlock_irq(&dev->lock);

	list_for_each_entry_safe(p, next, &copied, list) {
		list_del(&p->list);
		if (p->read_failed) {
			p->bio->bi_status = p->status;
			bio_endio(p->bio);
		} else if (p->status && !p->again) {
			dmu_probe(dev, p);
		} else {
			submit_bio_noacct(p->bio);
		}
	}
	dmu_probe_go_on(dev);
}

void dmu_run_work(struct work_struct *work)
{
	struct dmu_device *dev = container_of(work, struct dmu_device, run_work);
	struct dmu_io *io, *next;
	struct blk_plug plug;
	LIST_HEAD(run);

	spin_lock_irq(&dev->lock);
	list_splice_init(&dev->run, &run);
	spin_unlock_irq(&dev->lock);

	blk_start_plug(&plug);
	list_for_each_entry_safe(io, next, &run, list)
		dmu_run(io);
	blk_finish_plug(&plug);
}

static int dmu_map_flush(struct dmu_io *io, struct bio *bio)
{
	struct dmu_target *t = io->t;
	unsigned int i, writable = 0, last = 0;

	io->flags = DMU_IO_FLUSH;
	io->seq = dmu_flush_seq(t->dev);
	atomic64_inc(&t->dev->n.flushes);
	for (i = 0; i < t->num_dests; i++) {
		if (t->dests[i].writable) {
			writable++;
			last = i;
		}
	}
	if (writable == 1) {
		bio_set_dev(bio, t->dests[last].dm->bdev);
		return DM_MAPIO_REMAPPED;
	}
	dmu_run_unlocked(io);
	return DM_MAPIO_SUBMITTED;
}

/* dm sends what is beyond len again. */
static void dmu_accept(struct dmu_io *io, struct bio *bio, u32 len)
{
	if (len < bio_sectors(bio)) {
		dm_accept_partial_bio(bio, len);
		io->iter.bi_size = bio->bi_iter.bi_size;
	}
}

static int dmu_end_now(struct dmu_io *io, blk_status_t status)
{
	dmu_finish(io, status);
	return DM_MAPIO_SUBMITTED;
}

static int dmu_map_promote(struct dmu_io *io, struct bio *bio, struct dmu_plan *plan,
			   struct dmu_promotion *p)
{
	dmu_accept(io, bio, plan->len);
	io->promotion = p;
	io->flags |= DMU_IO_WAS_SENT;
	io->flags |= dmu_sync_flags(plan, bio_op(bio));
	io->to = plan->to;
	dmu_aim(io, bio, &plan->to);
	return dmu_promote_copies(p, bio) ? DM_MAPIO_SUBMITTED : DM_MAPIO_REMAPPED;
}

static int dmu_map_data(struct dmu_io *io, struct bio *bio)
{
	struct dmu_device *dev = io->t->dev;
	enum req_op op = bio_op(bio);
	struct dmu_promotion *p = NULL;
	enum dmu_begin begun = DMU_BEGUN;
	struct dmu_plan plan __uninitialized;

again:
	rcu_read_lock();
	io->phase = dmu_inflight_get(dev);
	dmu_plan(io, op, bio->bi_iter.bi_sector, bio_sectors(bio), &plan);
	if (likely(plan.verdict == DMU_REMAP)) {
		rcu_read_unlock();
		dmu_accept(io, bio, plan.len);
		io->to = plan.to;
		io->flags |= DMU_IO_WAS_SENT | dmu_sync_flags(&plan, op);
		dmu_aim(io, bio, &plan.to);
		return DM_MAPIO_REMAPPED;
	}
	if (plan.verdict == DMU_PROMOTE) {
		/* Parked by this, the io may be run, and have a phase, at once. */
		u8 phase = io->phase;

		io->phase = DMU_NO_PHASE;
		dmu_leave_map(io);
		begun = dmu_promote_begin(io, &plan, &p);
		rcu_read_unlock();
		if (begun == DMU_BEGUN) {
			io->phase = phase;
			return dmu_map_promote(io, bio, &plan, p);
		}
		dmu_inflight_put(dev, phase);
		if (begun == DMU_PARKED)
			return DM_MAPIO_SUBMITTED;
		if (begun == DMU_WOULD_PARK)
			return dmu_end_now(io, BLK_STS_AGAIN);
		if (begun == DMU_REFUSED)
			return dmu_end_now(io, io->status);
		goto again;
	}
	rcu_read_unlock();
	dmu_inflight_put(dev, io->phase);
	io->phase = DMU_NO_PHASE;
	if (plan.verdict == DMU_ZEROES) {
		dmu_accept(io, bio, plan.len);
		dmu_zero_front(bio, plan.len);
		return dmu_end_now(io, BLK_STS_OK);
	}
	if (io->flags & DMU_IO_NOWAIT)
		return dmu_end_now(io, BLK_STS_AGAIN);
	dmu_leave_map(io);
	dmu_ask_plan(io, &plan, op);
	return DM_MAPIO_SUBMITTED;
}

int dmu_map(struct dm_target *ti, struct bio *bio)
{
	struct dmu_io *io = dm_per_bio_data(bio, sizeof(*io));

	io->t = ti->private;
	io->promotion = NULL;
	io->answer = NULL;
	io->phase = DMU_NO_PHASE;
	io->to.dest = DMU_DEST_NONE;
	io->to.sector = 0;
	io->flags = 0;
	io->status = BLK_STS_OK;
	io->seq = 0;
	io->opf = bio->bi_opf & ~REQ_POLLED;
	atomic_set(&io->parts, 1);

	if (unlikely(bio->bi_opf & REQ_PREFLUSH))
		return dmu_map_flush(io, bio);
	bio->bi_iter.bi_sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	io->iter = bio->bi_iter;
	if (bio->bi_opf & REQ_FUA)
		io->flags |= DMU_IO_FUA;
	if (unlikely(bio->bi_opf & REQ_NOWAIT))
		io->flags |= DMU_IO_NOWAIT;
	if (unlikely(op_is_discard(bio->bi_opf) || bio_op(bio) == REQ_OP_WRITE_ZEROES)) {
		io->flags &= ~DMU_IO_NOWAIT;
		if (op_is_discard(bio->bi_opf))
			atomic64_inc(&io->t->dev->n.discards);
		bio->bi_opf &= ~REQ_NOWAIT;
		dmu_leave_map(io);
		dmu_run_unlocked(io);
		return DM_MAPIO_SUBMITTED;
	}
	return dmu_map_data(io, bio);
}

/* True if the io is held: for room, for DONE, or for a commit. */
static bool dmu_hold(struct dmu_io *io, blk_status_t status)
{
	u64 start = io->iter.bi_sector;
	u32 len = io->iter.bi_size >> SECTOR_SHIFT;
	bool write = !dmu_io_reads(io) && !op_is_discard(io->opf);

	if (io->flags & DMU_IO_FINAL)
		return false;
	if (status == BLK_STS_NOSPC && write && !(io->flags & DMU_IO_FLUSH)) {
		dmu_ask(io, DMU_MSG_ERROR, 0, start, len);
		return true;
	}
	if (status)
		return false;
	if (io->flags & (DMU_IO_SYNC | DMU_IO_DONE | DMU_IO_FUA))
		io->seq = dmu_fua_seq(io->t->dev, start, len);
	/* Also if it was another write that promoted, and its commit is to come. */
	if ((io->flags & DMU_IO_DONE) || ((io->flags & DMU_IO_SYNC) && io->seq)) {
		dmu_ask(io, DMU_MSG_DONE, 0, start, len);
		return true;
	}
	if (io->flags & DMU_IO_FUA) {
		if (!io->seq)
			return false;
		io->flags |= DMU_IO_FLUSH | DMU_IO_HELD;
		dmu_run_unlocked(io);
		return true;
	}
	if (io->flags & DMU_IO_FLUSH) {
		if (!io->seq)
			return false;
		dmu_ask(io, DMU_MSG_FLUSH, 0, 0, 0);
		return true;
	}
	return false;
}

int dmu_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct dmu_io *io = dm_per_bio_data(bio, sizeof(*io));
	struct dmu_promotion *p = io->promotion;

	/* PROMOTED first: INVALIDATED must not be told before it. */
	if (p) {
		io->promotion = NULL;
		*error = *error ?: p->status;
		dmu_promote_end(p, !*error);
	}
	if (io->phase != DMU_NO_PHASE) {
		u8 phase = io->phase;

		io->phase = DMU_NO_PHASE;
		dmu_inflight_put(io->t->dev, phase);
	}
	if (likely(!*error && !(io->flags & ~(DMU_IO_WAS_SENT | DMU_IO_NOWAIT))))
		return DM_ENDIO_DONE;
	dmu_set_answer(io, NULL);
	return dmu_hold(io, *error) ? DM_ENDIO_INCOMPLETE : DM_ENDIO_DONE;
}
