// SPDX-License-Identifier: GPL-2.0-only
/*
 * The target as device-mapper sees it. Table:
 *
 *	<key> <#features> [feature...] <#dests> {<dest> ro|rw}...
 */
#include <linux/device-mapper.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "dmu.h"

static void dmu_event_work(struct work_struct *work)
{
	struct dmu_target *t = container_of(work, struct dmu_target, event_work);

	dm_table_event(t->ti->table);
}

void dmu_event(struct dmu_device *dev)
{
	lockdep_assert_held(&dev->lock);
	if (dev->live)
		queue_work(dev->wq, &dev->live->event_work);
}

static int dmu_parse_number(struct dm_arg_set *as, unsigned int *left, unsigned int min,
			    unsigned int max, const char *error, unsigned int *value, char **why)
{
	struct dm_arg arg = { min, max, (char *)error };

	if (!*left) {
		*why = (char *)error;
		return -EINVAL;
	}
	(*left)--;
	return dm_read_arg(&arg, as, value, why);
}

static int dmu_parse_feature(struct dmu_target *t, struct dm_arg_set *as, unsigned int *left,
			     char **why)
{
	const char *name = dm_shift_arg(as);

	(*left)--;
	if (!strcasecmp(name, "queue_if_no_daemon") || !strcasecmp(name, "fail_if_no_daemon")) {
		if (t->policy_given) {
			*why = "Only one of queue_if_no_daemon and fail_if_no_daemon, once";
			return -EINVAL;
		}
		t->policy_given = true;
		if (!strcasecmp(name, "queue_if_no_daemon"))
			return 0;
		t->fail_if_no_daemon = true;
		return dmu_parse_number(as, left, 0, 86400,
					"fail_if_no_daemon takes seconds, at most 86400",
					&t->fail_secs, why);
	}
	if (!strcasecmp(name, "max_extents"))
		return dmu_parse_number(as, left, 16, 1U << 24,
					"max_extents takes a number from 16 to 16777216",
					&t->max_extents, why);
	if (!strcasecmp(name, "max_uncommitted"))
		return dmu_parse_number(as, left, 1, 1U << 24,
					"max_uncommitted takes granules, from 1 to 16777216",
					&t->max_uncommitted, why);
	if (!strcasecmp(name, "discard_granularity")) {
		if (dmu_parse_number(as, left, 512, 1U << 25,
				     "discard_granularity takes bytes, from 512 to 33554432",
				     &t->discard_granularity, why))
			return -EINVAL;
		if (t->discard_granularity & (t->discard_granularity - 1)) {
			*why = "discard_granularity must be a power of two";
			return -EINVAL;
		}
		return 0;
	}
	if (!strcasecmp(name, "write_zeroes")) {
		t->write_zeroes = true;
		return 0;
	}
	*why = "Unknown feature";
	return -EINVAL;
}

static int dmu_parse_features(struct dmu_target *t, struct dm_arg_set *as, char **why)
{
	static const struct dm_arg count = { 0, 16, "Invalid number of features" };
	unsigned int left;

	if (dm_read_arg_group(&count, as, &left, why))
		return -EINVAL;
	while (left)
		if (dmu_parse_feature(t, as, &left, why))
			return -EINVAL;
	return 0;
}

static int dmu_open_dest(struct dmu_target *t, struct dmu_dest *dest, const char *path)
{
	struct dm_target *ti = t->ti;
	int r;

	r = dm_get_device(ti, path, dest->writable ? dm_table_get_mode(ti->table) :
			  dmu_mode_ro(dm_table_get_mode(ti->table)), &dest->dm);
	if (r) {
		ti->error = "Cannot open a destination";
		return r;
	}
	dest->sectors = bdev_nr_sectors(dest->dm->bdev);
	return 0;
}

/*
 * The writable ones are opened first: were a device that is listed twice first
 * opened read-only, dm would replace its struct dm_dev when the mode goes up.
 */
static int dmu_open_dests(struct dmu_target *t, struct dm_arg_set *as)
{
	unsigned int i, pass;
	int r;

	for (i = 0; i < t->num_dests; i++) {
		const char *mode = as->argv[2 * i + 1];

		if (!strcmp(mode, "rw")) {
			t->dests[i].writable = dmu_mode_is_rw(dm_table_get_mode(t->ti->table));
		} else if (strcmp(mode, "ro")) {
			t->ti->error = "A destination is ro or rw";
			return -EINVAL;
		}
	}
	for (pass = 0; pass < 2; pass++) {
		for (i = 0; i < t->num_dests; i++) {
			if (t->dests[i].writable != !pass)
				continue;
			r = dmu_open_dest(t, &t->dests[i], as->argv[2 * i]);
			if (r)
				return r;
		}
	}
	return 0;
}

static void dmu_free_target(struct dmu_target *t)
{
	unsigned int i;

	for (i = 0; i < t->num_dests; i++)
		if (t->dests[i].dm)
			dm_put_device(t->ti, t->dests[i].dm);
	kfree(t);
}

/* What follows the key: features and destinations. */
static int dmu_parse(struct dmu_target *t, struct dm_arg_set *as)
{
	static const struct dm_arg count = { 1, DMU_MAX_DESTS, "Invalid number of destinations" };
	struct dm_target *ti = t->ti;
	unsigned int n;
	int r;

	r = dmu_parse_features(t, as, &ti->error);
	if (r)
		return r;
	r = dm_read_arg(&count, as, &n, &ti->error);
	if (r)
		return r;
	if (as->argc != 2 * n) {
		ti->error = "The destinations are not as many as announced, each with ro or rw";
		return -EINVAL;
	}
	t->num_dests = n;
	return dmu_open_dests(t, as);
}

static int dmu_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { argc, argv };
	struct dmu_target *t;
	const char *key;
	int r;

	if (argc < 5) {
		ti->error = "Not enough arguments";
		return -EINVAL;
	}
	key = dm_shift_arg(&as);
	if (strlen(key) >= DMU_KEY_MAX) {
		ti->error = "The key is too long";
		return -ENAMETOOLONG;
	}
	t = kzalloc(struct_size(t, dests, DMU_MAX_DESTS), GFP_KERNEL);
	if (!t) {
		ti->error = "Cannot allocate the target";
		return -ENOMEM;
	}
	t->ti = ti;
	t->max_extents = DMU_DEFAULT_MAX_EXTENTS;
	t->max_uncommitted = DMU_DEFAULT_MAX_UNCOMMITTED;
	INIT_WORK(&t->event_work, dmu_event_work);
	r = dmu_parse(t, &as);
	if (r)
		goto err;
	t->dev = dmu_device_get(ti, key);
	if (IS_ERR(t->dev)) {
		r = PTR_ERR(t->dev);
		goto err;
	}
	ti->private = t;
	ti->per_io_data_size = sizeof(struct dmu_io);
	ti->num_flush_bios = 1;
	ti->flush_supported = true;
	ti->limit_swap_bios = true;
	if (t->discard_granularity) {
		ti->num_discard_bios = 1;
		ti->discards_supported = true;
	}
	if (t->write_zeroes)
		ti->num_write_zeroes_bios = 1;
	return 0;
err:
	dmu_free_target(t);
	return r;
}

static void dmu_dtr(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;
	struct dmu_device *dev = t->dev;

	spin_lock_irq(&dev->lock);
	if (dev->live == t)
		dev->live = NULL;
	spin_unlock_irq(&dev->lock);
	cancel_work_sync(&t->event_work);
	dmu_device_put_table(dev);
	dmu_free_target(t);
}

static void dmu_presuspend(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;
	struct dmu_device *dev = t->dev;
	LIST_HEAD(ios);
	LIST_HEAD(full);

	spin_lock_irq(&dev->lock);
	if (dm_noflush_suspending(ti)) {
		dev->pushback = true;
		dmu_items_take_all(dev, &ios);
	} else {
		dev->flushing_suspend = true;
		dmu_no_daemon(dev);
		dmu_items_take_errors(dev, &full);
	}
	spin_unlock_irq(&dev->lock);
	dmu_abort_all(&ios, BLK_STS_DM_REQUEUE);
	dmu_abort_all(&full, BLK_STS_NOSPC);
}

static void dmu_resume_modes(struct dmu_device *dev)
{
	spin_lock_irq(&dev->lock);
	dev->pushback = false;
	dev->flushing_suspend = false;
	if (dev->live && !dev->live->fail_if_no_daemon)
		dev->failing = false;
	if (!dev->failing)
		dmu_no_daemon(dev);
	spin_unlock_irq(&dev->lock);
}

static void dmu_presuspend_undo(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;

	dmu_resume_modes(t->dev);
}

static int dmu_preresume(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;
	struct dmu_device *dev = t->dev;

	spin_lock_irq(&dev->lock);
	if (dev->live != t) {
		dev->live = t;
		dev->sectors = ti->len;
		dev->max_extents = t->max_extents;
		dev->max_uncommitted = t->max_uncommitted;
		dev->logical_block_size = bdev_logical_block_size(dm_disk(dev->md)->part0);
		dmu_extent_drop_misfits(dev, t);
		dev->epoch++;
		dmu_event(dev);
	}
	spin_unlock_irq(&dev->lock);
	return 0;
}

static void dmu_resume(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;

	dmu_resume_modes(t->dev);
}

static const char *dmu_state(struct dmu_device *dev, struct dmu_target *t)
{
	if (dev->live != t || dm_suspended(t->ti))
		return "suspended";
	if (!dev->channel)
		return "no_daemon";
	return dev->replaying ? "replaying" : "active";
}

static void dmu_status_info(struct dmu_target *t, char *result, unsigned int maxlen)
{
	struct dmu_device *dev = t->dev;
	unsigned int items, bios, sz = 0;
	struct dmu_counters n;

	spin_lock_irq(&dev->lock);
	items = dmu_items_waiting(dev, &bios);
	n = dev->n;
	DMEMIT("%s %u/%u %u %u %u %llu %llu 13", dmu_state(dev, t), dev->nr_extents,
	       dev->max_extents, dev->nr_leaves, items, bios, dev->nr_uncommitted, dev->gen);
	spin_unlock_irq(&dev->lock);
	DMEMIT(" faults %llu reads_parked %llu writes_parked %llu promotions %llu",
	       n.faults, n.reads_parked, n.writes_parked, n.promotions);
	DMEMIT(" copies %llu copied_sectors %llu flushes %llu daemon_flushes %llu",
	       n.copies, n.copied_sectors, (u64)atomic64_read(&n.flushes), n.daemon_flushes);
	DMEMIT(" evictions %llu invalidations %llu discards %llu pushed %llu errors %llu",
	       n.evictions, n.invalidations, (u64)atomic64_read(&n.discards), n.pushed, n.errors);
}

static void dmu_status_table(struct dmu_target *t, char *result, unsigned int maxlen)
{
	unsigned int i, features, sz = 0;

	features = 1 + t->fail_if_no_daemon + t->write_zeroes +
		   2 * (t->max_extents != DMU_DEFAULT_MAX_EXTENTS) +
		   2 * (t->max_uncommitted != DMU_DEFAULT_MAX_UNCOMMITTED) +
		   2 * !!t->discard_granularity;
	DMEMIT("%s %u", t->dev->key, features);
	if (t->fail_if_no_daemon)
		DMEMIT(" fail_if_no_daemon %u", t->fail_secs);
	else
		DMEMIT(" queue_if_no_daemon");
	if (t->max_extents != DMU_DEFAULT_MAX_EXTENTS)
		DMEMIT(" max_extents %u", t->max_extents);
	if (t->max_uncommitted != DMU_DEFAULT_MAX_UNCOMMITTED)
		DMEMIT(" max_uncommitted %u", t->max_uncommitted);
	if (t->discard_granularity)
		DMEMIT(" discard_granularity %u", t->discard_granularity);
	if (t->write_zeroes)
		DMEMIT(" write_zeroes");
	DMEMIT(" %u", t->num_dests);
	for (i = 0; i < t->num_dests; i++)
		DMEMIT(" %s %s", t->dests[i].dm->name, t->dests[i].writable ? "rw" : "ro");
}

static void dmu_status(struct dm_target *ti, status_type_t type, unsigned int flags, char *result,
		       unsigned int maxlen)
{
	switch (type) {
	case STATUSTYPE_INFO:
		dmu_status_info(ti->private, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		dmu_status_table(ti->private, result, maxlen);
		break;
	case STATUSTYPE_IMA:
		result[0] = '\0';
		break;
	}
}

/* Anything of a destination may be mapped: each counts with its own size. */
static int dmu_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct dmu_target *t = ti->private;
	unsigned int i;
	int r = 0;

	for (i = 0; i < t->num_dests && !r; i++)
		r = fn(ti, t->dests[i].dm, 0, t->dests[i].sectors, data);
	return r;
}

static void dmu_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct dmu_target *t = ti->private;

	if (t->discard_granularity)
		dmu_limit_discards(limits, t->discard_granularity);
}

static struct target_type dmu_target_type = {
	.name = "userspace",
	.version = {1, 0, 0},
	.features = DM_TARGET_SINGLETON | DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = dmu_ctr,
	.dtr = dmu_dtr,
	.map = dmu_map,
	.end_io = dmu_end_io,
	.presuspend = dmu_presuspend,
	.presuspend_undo = dmu_presuspend_undo,
	.preresume = dmu_preresume,
	.resume = dmu_resume,
	.status = dmu_status,
	.iterate_devices = dmu_iterate_devices,
	.io_hints = dmu_io_hints,
};

static int __init dmu_init(void)
{
	int r = dmu_device_init();

	if (r)
		return r;
	r = dmu_channel_init();
	if (r)
		goto err_device;
	r = dm_register_target(&dmu_target_type);
	if (r)
		goto err_channel;
	return 0;

err_channel:
	dmu_channel_exit();
err_device:
	dmu_device_exit();
	return r;
}

static void __exit dmu_exit(void)
{
	dm_unregister_target(&dmu_target_type);
	dmu_channel_exit();
	dmu_device_exit();
}

module_init(dmu_init);
module_exit(dmu_exit);

MODULE_DESCRIPTION("device-mapper target whose mapping is decided in userspace");
MODULE_AUTHOR("The dm-userspace authors");
MODULE_LICENSE("GPL");
