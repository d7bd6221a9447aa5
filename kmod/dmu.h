/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-userspace, internals.
 *
 * A bio meets three kinds of state: extents (what the daemon said), promotions
 * (granules whose first write is under way, later those that no commit covers
 * yet) and items (questions to the daemon, each with the bios that wait for it).
 *
 * Locking: dmu_device.lock, taken with interrupts off, guards all of them.
 * Lookup takes no lock: the extent tree is read under RCU and extent_seq, leaves
 * under RCU; both are freed after a grace period. Nothing is held across I/O.
 *
 * All sectors are 512 bytes; "virtual" ones count from the start of the device.
 */
#ifndef DMU_H
#define DMU_H

#include <linux/bio.h>
#include <linux/bits.h>
#include <linux/device-mapper.h>
#include <linux/hash.h>
#include <linux/list.h>
#include <linux/mempool.h>
#include <linux/percpu.h>
#include <linux/rbtree.h>
#include <linux/rculist.h>
#include <linux/refcount.h>
#include <linux/seqlock.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/dm-userspace.h>

#include "dmu-compat.h"

#define DM_MSG_PREFIX "userspace"

#define DMU_ID_BUCKETS		256
#define DMU_DEFAULT_MAX_EXTENTS	65536
#define DMU_DEFAULT_MAX_UNCOMMITTED 262144	/* granules */
#define DMU_UNCOMMITTED_SECS	30	/* without a daemon, before promotion stops */
#define DMU_SUSPEND_SECS	10	/* a flushing suspend waits for a daemon */
#define DMU_PROMOTED_DELAY	(HZ / 2)	/* before PROMOTED alone wakes the daemon */
#define DMU_RESERVED_IOS	16	/* bios, promotions kept in reserve, a device */
#define DMU_RESERVED_EXTENTS	4
#define DMU_RESERVED_LEAVES	2

struct dmu_channel;
struct dmu_device;
struct dmu_io;

/* A node of an interval tree; last is inclusive. */
struct dmu_range {
	struct rb_node rb;
	u64 start;
	u64 last;
	u64 subtree_last;
};

void dmu_range_insert(struct dmu_range *r, struct rb_root_cached *root);
void dmu_range_remove(struct dmu_range *r, struct rb_root_cached *root);
/* The first range that overlaps [start, last], in order of start; or NULL. */
struct dmu_range *dmu_range_first(struct rb_root_cached *root, u64 start, u64 last);
struct dmu_range *dmu_range_next(struct dmu_range *r, u64 start, u64 last);

struct dmu_side {
	u32 dest;
	u64 sector;
};

/* What extents and leaves share: a place on the list that eviction goes round. */
struct dmu_cached {
	struct dmu_device *dev;
	struct list_head lru;
	refcount_t ref;		/* one of the tree or hash, one a promotion */
	bool is_leaf;
	bool accessed;
	bool dead;		/* no longer to be found; lock */
	struct rcu_head rcu;
};

/* A mapping. Immutable but for start and len (extent_seq) and promoted. */
struct dmu_extent {
	struct rb_node rb;
	struct dmu_cached c;
	u64 start;
	u64 len;
	struct dmu_side read;
	struct dmu_side write;
	u32 flags;		/* DMU_F_* of MAP */
	u32 granule;		/* sectors; COPY_FIRST: unused, the granule is all of it */
	u32 granule_shift;
	bool promoted;		/* COPY_FIRST: its one granule */
	u64 epoch;		/* while it is the answer to a bio: see dmu_device */
	u32 leaf_mask;		/* OVERLAY: buckets - 1 */
	struct hlist_head *leaves;
};

/* The promoted bits of DMU_LEAF_GRANULES granules of an overlay. */
struct dmu_leaf {
	struct dmu_cached c;
	struct hlist_node hash;
	struct dmu_extent *extent;	/* valid while not dead */
	u32 index;		/* in its extent */
	bool keep;		/* volatile promotions: only here, never evicted */
	unsigned long bits[BITS_TO_LONGS(DMU_LEAF_GRANULES)];
};

/* A consistent copy of an extent. */
struct dmu_map {
	struct dmu_extent *extent;
	u64 start;
	u64 len;
	struct dmu_side read;
	struct dmu_side write;
	u32 flags;
	u32 granule;
	u32 granule_shift;
	bool promoted;		/* COPY_FIRST, and its granule is promoted: plain by now */
};

enum dmu_verdict {
	DMU_REMAP,		/* to dest, sector */
	DMU_ZEROES,		/* a read of zeroes */
	DMU_PROMOTE,		/* a first write */
	DMU_SKIP,		/* a discard of what is not there */
	DMU_ASK,		/* no mapping */
	DMU_ASK_LEAF,		/* an overlay, but not its bits */
};

/* What is to become of the first len sectors of a bio. */
struct dmu_plan {
	enum dmu_verdict verdict;
	u64 start;		/* virtual */
	u32 len;
	struct dmu_side to;
	struct dmu_map map;
	struct dmu_leaf *leaf;	/* DMU_PROMOTE in an overlay */
	u64 ask_start;		/* DMU_ASK*: what to ask for */
	u64 ask_len;
};

/*
 * A first write. While it is under way, range is in dmu_device.busy and covers
 * whole granules. Afterwards, unless volatile, it is in dmu_device.uncommitted
 * until a commit covers seq.
 */
struct dmu_promotion {
	struct dmu_range range;
	struct list_head list;		/* dmu_device.promoted, or .copied */
	struct list_head waiters;	/* ios that want a granule of it */
	struct dmu_device *dev;
	struct dmu_extent *extent;
	struct dmu_leaf *leaf;
	struct dmu_io *io;
	struct bio *bio;		/* to be submitted after the copies */
	struct dmu_side from;		/* of range.start: what copies read */
	struct dmu_side to;		/* of range.start */
	u64 seq;
	u64 granules;
	u32 first_bit;			/* in leaf */
	u32 flags;			/* of the extent */
	bool replay;
	bool unread;
	bool closed;			/* a flush counts on seq: nothing may be merged in */
	atomic_t copies;
	bool read_failed;		/* of the copies */
	bool again;			/* they are made a second time */
	blk_status_t status;
	unsigned long since;		/* jiffies */
};

enum dmu_item_state { DMU_ITEM_NONE, DMU_ITEM_QUEUED, DMU_ITEM_SENT };

/* A question to the daemon. Lives in the io that asked; others may join a FAULT. */
struct dmu_item {
	enum dmu_item_state state;
	u32 type;		/* DMU_MSG_* */
	u32 flags;
	int error;
	u64 id;
	u64 seq;
	u64 gen;
	struct dmu_side to;
	struct dmu_range range;	/* virtual; FAULT: in dmu_device.faults */
	struct list_head list;	/* dmu_device.queue or .sent */
	struct hlist_node hash;
	struct list_head ios;	/* who joined, by dmu_io.list */
};

/* dmu_io.flags */
#define DMU_IO_FINAL	BIT(0)	/* completion is decided */
#define DMU_IO_FUA	BIT(1)
#define DMU_IO_SYNC	BIT(2)	/* went through a SYNC overlay or COPY_FIRST */
#define DMU_IO_FLUSH	BIT(3)	/* an empty flush, or the flush after FUA */
#define DMU_IO_WAS_SENT	BIT(4)	/* the clone itself was submitted once */
#define DMU_IO_HELD	BIT(5)	/* done at the destination, waits for the daemon */
#define DMU_IO_NOWAIT	BIT(6)	/* in map, and may not park */
#define DMU_IO_DONE	BIT(7)	/* went through a plain SYNC extent */

#define DMU_NO_PHASE	2

/* Per-bio data of a clone that dm gave us. */
struct dmu_io {
	struct dmu_target *t;
	struct dmu_promotion *promotion;	/* of the clone itself */
	struct bvec_iter iter;		/* what map accepted: where a retry begins */
	blk_opf_t opf;
	u8 phase;
	u8 flags;
	blk_status_t status;
	atomic_t parts;			/* under way, + 1 for whoever runs it */
	u64 seq;			/* highest promotion, or what a flush wants */
	struct dmu_side to;		/* of the clone, or of the part that had no space */
	struct dmu_extent *answer;	/* that is not in the tree, or to a DISCARD */
	struct list_head list;
	struct dmu_item item;
};

/* A piece of an io that was answered in pieces, or one flush of several. */
struct dmu_part {
	struct dmu_io *io;
	struct dmu_promotion *promotion;
	struct dmu_side to;
	u8 phase;
	struct bio bio;			/* last */
};

struct dmu_dest {
	struct dm_dev *dm;
	u64 sectors;
	bool writable;
};

/* One table. */
struct dmu_target {
	struct dm_target *ti;
	struct dmu_device *dev;
	struct work_struct event_work;
	bool fail_if_no_daemon;
	bool policy_given;		/* in the table */
	bool write_zeroes;
	unsigned int fail_secs;
	unsigned int max_extents;
	unsigned int max_uncommitted;
	unsigned int discard_granularity;
	unsigned int num_dests;
	struct dmu_dest dests[];
};

struct dmu_inflight {
	long n[2];
};

/* Zeroes that are written to learn why a copy could not be. */
struct dmu_probe {
	struct bio bio;
	struct dmu_promotion *p;	/* for whom */
	u64 at;				/* sectors, from its first granule on */
	u32 sectors;			/* of bio */
	bool ended;			/* lock */
};

/* INVALIDATE, from when it is written until INVALIDATED is read; so many at most. */
#define DMU_MAX_INVALIDATIONS	16384
struct dmu_invalidation {
	struct list_head list;
	u64 id;
	u64 gen;
};

struct dmu_counters {
	u64 faults, reads_parked, writes_parked, promotions, copies, copied_sectors;
	u64 daemon_flushes, evictions, invalidations, pushed, errors;
	atomic64_t flushes, discards;	/* counted without the lock */
};

/* What the old and the new table of one mapped device share. */
struct dmu_device {
	struct list_head list;		/* registry */
	refcount_t ref;			/* tables and channels */
	unsigned int tables;		/* registry mutex */
	struct mapped_device *md;	/* to compare, never to follow after the last dtr */
	dev_t devt;
	char key[DMU_KEY_MAX];

	spinlock_t lock;		/* all below but for what is per CPU or says otherwise */
	struct dmu_target *live;	/* NULL before the first resume, after the last dtr */
	u64 sectors;
	unsigned int max_extents;
	unsigned int max_uncommitted;
	unsigned int logical_block_size;
	bool gone;
	bool pushback;			/* noflush suspend */
	bool flushing_suspend;
	bool failing;			/* no daemon, and none is waited for */

	seqcount_spinlock_t extent_seq;
	struct rb_root extents;
	struct list_head lru;
	unsigned int nr_extents;
	unsigned int nr_leaves;
	u64 gen;			/* of what could be pushed */
	u64 epoch;			/* of INVALIDATE and tables: older answers are void */

	u8 phase;
	bool draining;			/* of the drain work alone, as is phase */
	bool drain_wanted;
	u64 drain_attach_no;		/* for whom */
	struct dmu_inflight __percpu *inflight;
	struct work_struct drain_work;
	struct list_head invalidating;	/* wait for a drain to begin */
	struct list_head draining_now;	/* and to end */
	struct list_head invalidated;	/* wait to be read */

	struct rb_root_cached busy;
	struct rb_root_cached uncommitted;
	struct list_head promoted;	/* uncommitted, in order of seq */
	struct list_head promoted_volatile;	/* not read yet */
	u64 nr_uncommitted;		/* granules */
	struct dmu_promotion *unread;	/* the first such of promoted */
	unsigned int nr_unread;		/* records in both lists */
	bool promoted_due;
	u64 seq_last, seq_read, seq_committed;
	struct list_head promote_waiters;
	struct delayed_work promoted_work;

	u64 next_id;
	struct list_head queue;
	struct list_head sent;
	unsigned int nr_flushes;	/* among both */
	struct rb_root_cached faults;
	struct hlist_head ids[DMU_ID_BUCKETS];

	struct workqueue_struct *wq;
	struct work_struct run_work;
	struct work_struct copied_work;
	struct list_head run;		/* ios */
	struct list_head copied;	/* promotions */
	struct list_head failed;	/* promotions; of copied_work alone, as is probe */
	struct dmu_probe probe;
	struct delayed_work no_daemon_work;

	struct dmu_channel *channel;
	u64 attach_no;
	bool replay_wanted;		/* drain first */
	bool replaying;			/* REPLAY_DONE not read yet */
	u64 replay_volatile;		/* sector to go on from */
	bool replay_more;		/* it does go on */
	wait_queue_head_t readable;

	struct dm_kcopyd_client *kcopyd;	/* NULL before the first copy; no lock */
	struct bio_set bs;
	mempool_t promotions;
	mempool_t extent_pool;
	mempool_t leaf_pool;
	mempool_t invalidation_pool;
	atomic_t n_invalidations;	/* of it, not freed */
	struct dmu_counters n;
};

/* dmu-device.c: the registry. Process context, may sleep. */
extern struct workqueue_struct *dmu_copied_wq;
int dmu_device_init(void);
void dmu_device_exit(void);
struct dmu_device *dmu_device_get(struct dm_target *ti, const char *key);
void dmu_device_put_table(struct dmu_device *dev);
struct dmu_device *dmu_device_find(const char *key, dev_t devt);
void dmu_device_put(struct dmu_device *dev);

/* dmu-kcopyd.c: never waits; put: the device copies no more, may sleep. */
int dmu_kcopyd_init(void);
void dmu_kcopyd_exit(void);
struct dm_kcopyd_client *dmu_kcopyd(struct dmu_device *dev);
void dmu_kcopyd_put(struct dmu_device *dev);

/* dmu-extent.c. Under lock unless said otherwise. */
/* RCU only. Else *next is where the next extent begins. */
bool dmu_extent_find(struct dmu_device *dev, u64 sector, struct dmu_map *map, u64 *next);
static inline void dmu_extent_snapshot(struct dmu_extent *e, struct dmu_map *map)
{
	map->extent = e;
	map->start = READ_ONCE(e->start);
	map->len = READ_ONCE(e->len);
	map->read = e->read;
	map->write = e->write;
	map->flags = e->flags;
	map->granule = e->granule;
	map->granule_shift = e->granule_shift;
	map->promoted = false;
	/* Pairs with the release in dmu_set_bits. */
	if ((map->flags & DMU_F_COPY_FIRST) && smp_load_acquire(&e->promoted)) {
		map->read = map->write;
		map->promoted = true;
	}
}

int dmu_extent_install(struct dmu_device *dev, struct dmu_extent *e, bool answer,
		       bool *complete);
struct dmu_extent *dmu_extent_piece(struct dmu_device *dev);	/* not from the reserve */
void dmu_extent_invalidate(struct dmu_device *dev, u64 start, u64 len);
void dmu_extent_drop_misfits(struct dmu_device *dev, struct dmu_target *t);
void dmu_extent_drop_unbacked(struct dmu_device *dev);
void dmu_extent_drop_all(struct dmu_device *dev);
struct dmu_extent *dmu_extent_alloc(struct dmu_device *dev);
void dmu_extent_put(struct dmu_extent *e);	/* any context */
int dmu_check_side(struct dmu_target *t, const struct dmu_side *side, u64 len, bool write);
bool dmu_evict(struct dmu_device *dev);
struct dmu_extent *dmu_extent_next(struct dmu_device *dev, u64 sector);

/* dmu-leaf.c. Under lock, but for dmu_leaf_find (RCU). */
static inline struct hlist_head *dmu_leaf_bucket(struct dmu_extent *e, u32 index)
{
	return &e->leaves[hash_32(index, 32) & e->leaf_mask];
}

static inline struct dmu_leaf *dmu_leaf_find(struct dmu_extent *e, u32 index)
{
	struct dmu_leaf *leaf;

	hlist_for_each_entry_rcu(leaf, dmu_leaf_bucket(e, index), hash, true)
		if (leaf->index == index)
			return leaf;
	return NULL;
}

struct dmu_leaf *dmu_leaf_alloc(struct dmu_device *dev);	/* no lock */
void dmu_leaf_insert(struct dmu_device *dev, struct dmu_extent *e, struct dmu_leaf *leaf,
		     u32 index);
void dmu_leaf_kill(struct dmu_device *dev, struct dmu_leaf *leaf);
void dmu_leaf_put(struct dmu_leaf *leaf);
void dmu_leaf_span(const struct dmu_extent *e, u32 index, u64 *start, u64 *len);
void dmu_leaf_kill_range(struct dmu_device *dev, struct dmu_extent *e, u64 start, u64 end);

/* dmu-plan.c: RCU held. */
void dmu_plan(struct dmu_io *io, enum req_op op, u64 start, u32 len, struct dmu_plan *plan);

/* dmu-promote.c */
enum dmu_begin {
	DMU_BEGUN,
	DMU_AGAIN,		/* something changed: plan again */
	DMU_PARKED,		/* the io is no longer the caller's */
	DMU_WOULD_PARK,		/* DMU_IO_NOWAIT */
	DMU_REFUSED,		/* io->status says why */
};

enum dmu_begin dmu_promote_begin(struct dmu_io *io, struct dmu_plan *plan,
				 struct dmu_promotion **out);	/* RCU */
bool dmu_promote_copies(struct dmu_promotion *p, struct bio *bio);
/* What the bio of p, aimed already, does not cover: [0, *before) and [*after, *len). */
void dmu_copied_runs(const struct dmu_promotion *p, const struct bio *bio, u64 *before,
		     u64 *after, u64 *len);
void dmu_start_copies(struct dmu_promotion *p);
void dmu_promote_end(struct dmu_promotion *p, bool ok);		/* any context */
void dmu_promote_plain(struct dmu_device *dev, struct dmu_promotion *p,
		       const struct dmu_extent *e);		/* under lock */
struct dmu_promotion *dmu_promotion_alloc(struct dmu_device *dev);
void dmu_promotion_free(struct dmu_device *dev, struct dmu_promotion *p);
void dmu_promotion_free_locked(struct dmu_device *dev, struct dmu_promotion *p);
/* The commit that a flush, or a FUA write of these sectors, has to wait for; or 0. */
u64 dmu_flush_seq(struct dmu_device *dev);
u64 dmu_fua_seq(struct dmu_device *dev, u64 start, u32 len);
bool dmu_needs_commit(struct dmu_device *dev, u64 seq);		/* under lock */
int dmu_commit(struct dmu_device *dev, u64 seq);		/* no lock */
void dmu_commit_range(struct dmu_device *dev, u64 start, u64 last, u64 seq);	/* under lock */
void dmu_replay_reset(struct dmu_device *dev);			/* under lock */
bool dmu_promoted_pop(struct dmu_device *dev, struct dmu_msg *msg);	/* under lock */
void dmu_promoted_work(struct work_struct *work);

/* dmu-probe.c: in copied_work */
void dmu_probe_init(void);
void dmu_probe(struct dmu_device *dev, struct dmu_promotion *p);
void dmu_probe_go_on(struct dmu_device *dev);

/* dmu-io.c */
int dmu_map(struct dm_target *ti, struct bio *bio);
int dmu_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error);
void dmu_run_work(struct work_struct *work);
void dmu_copied_work(struct work_struct *work);
void dmu_run_later(struct dmu_device *dev, struct dmu_io *io);		/* under lock */
void dmu_run_list(struct dmu_device *dev, struct list_head *ios);	/* under lock */
void dmu_set_answer(struct dmu_io *io, struct dmu_extent *e);
void dmu_abort(struct dmu_io *io, blk_status_t status);		/* no lock, any context */
void dmu_abort_all(struct list_head *ios, blk_status_t status);	/* the same */
void dmu_retry(struct dmu_io *io);				/* under lock */
int dmu_fill(struct dmu_io *io, u64 sector, const void __user *data, u32 bytes);
void dmu_copied(struct dmu_promotion *p);

static inline bool dmu_io_reads(const struct dmu_io *io)
{
	return !op_is_write(io->opf);
}

static inline struct bio *dmu_io_bio(struct dmu_io *io)
{
	return dm_bio_from_per_bio_data(io, sizeof(*io));
}

/* dmu-park.c: ios that wait for the daemon. Under lock, but for the first. */
void dmu_ask(struct dmu_io *io, u32 type, u32 flags, u64 start, u64 len);
bool dmu_may_park(struct dmu_device *dev, blk_status_t *status);
struct dmu_item *dmu_item_find(struct dmu_device *dev, u64 id);
void dmu_item_take(struct dmu_device *dev, struct dmu_item *item, struct list_head *ios);
bool dmu_item_pop(struct dmu_device *dev, struct dmu_msg *msg);
void dmu_items_requeue_sent(struct dmu_device *dev);
void dmu_items_reask(struct dmu_device *dev, u64 start, u64 last);
void dmu_items_take_errors(struct dmu_device *dev, struct list_head *ios);
void dmu_items_take_flushes(struct dmu_device *dev, u64 seq, struct list_head *ios);
void dmu_items_take_all(struct dmu_device *dev, struct list_head *ios);
unsigned int dmu_items_waiting(struct dmu_device *dev, unsigned int *bios);
void dmu_no_daemon(struct dmu_device *dev);
void dmu_no_daemon_work(struct work_struct *work);
void dmu_wake(struct dmu_device *dev);

/* dmu-drain.c */
/* In the RCU section that does the lookup, before it. */
static inline u8 dmu_inflight_get(struct dmu_device *dev)
{
	/* Who counts in a new phase must also see the epoch that began before it. */
	u8 phase = smp_load_acquire(&dev->phase);

	this_cpu_inc(dev->inflight->n[phase]);
	return phase;
}

/*
 * The section orders the count before the look at draining: dmu_drain_begin sets
 * that and waits for a grace period before anybody sums.
 */
static inline void dmu_inflight_put(struct dmu_device *dev, u8 phase)
{
	rcu_read_lock();
	this_cpu_dec(dev->inflight->n[phase]);
	if (unlikely(READ_ONCE(dev->draining)) && phase != READ_ONCE(dev->phase))
		queue_work(dev->wq, &dev->drain_work);
	rcu_read_unlock();
}

void dmu_drain(struct dmu_device *dev);			/* under lock */
struct dmu_invalidation *dmu_invalidation_alloc(struct dmu_device *dev);
void dmu_invalidation_free(struct dmu_device *dev, struct dmu_invalidation *inv);
void dmu_drain_work(struct work_struct *work);

/* dmu-channel.c, dmu-message.c */
int dmu_channel_init(void);
void dmu_channel_exit(void);
int dmu_message(struct dmu_device *dev, const struct dmu_msg *msg);
void dmu_event(struct dmu_device *dev);			/* under lock */

#endif
