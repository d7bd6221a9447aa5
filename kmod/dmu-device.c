// SPDX-License-Identifier: GPL-2.0-only
/*
 * The registry: one dmu_device a mapped device that has, or is about to get, a
 * table of ours. It holds no reference on the mapped device; its tables hold it.
 */
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "dmu.h"

static LIST_HEAD(registry);
static DEFINE_MUTEX(registry_lock);
/* For bios whose copies are done. Not a device's: its worker may wait for them. */
struct workqueue_struct *dmu_copied_wq;
static struct kmem_cache *extent_cache;
static struct kmem_cache *leaf_cache;
static struct kmem_cache *promotion_cache;

static void dmu_device_free(struct dmu_device *dev)
{
	struct dmu_promotion *p, *next;

	list_splice_init(&dev->promoted_volatile, &dev->promoted);
	list_for_each_entry_safe(p, next, &dev->promoted, list)
		dmu_promotion_free(dev, p);
	if (dev->wq)
		destroy_workqueue(dev->wq);
	dmu_kcopyd_put(dev);
	mempool_exit(&dev->invalidation_pool);
	mempool_exit(&dev->leaf_pool);
	mempool_exit(&dev->extent_pool);
	mempool_exit(&dev->promotions);
	bioset_exit(&dev->bs);
	free_percpu(dev->inflight);
	kfree(dev);
}

static void dmu_device_init_state(struct dmu_device *dev)
{
	int i;

	refcount_set(&dev->ref, 1);
	spin_lock_init(&dev->lock);
	seqcount_spinlock_init(&dev->extent_seq, &dev->lock);
	dev->extents = RB_ROOT;
	dev->busy = RB_ROOT_CACHED;
	dev->uncommitted = RB_ROOT_CACHED;
	dev->faults = RB_ROOT_CACHED;
	dev->gen = 1;
	INIT_LIST_HEAD(&dev->lru);
	INIT_LIST_HEAD(&dev->invalidating);
	INIT_LIST_HEAD(&dev->draining_now);
	INIT_LIST_HEAD(&dev->invalidated);
	INIT_LIST_HEAD(&dev->promoted);
	INIT_LIST_HEAD(&dev->promoted_volatile);
	INIT_LIST_HEAD(&dev->promote_waiters);
	INIT_LIST_HEAD(&dev->queue);
	INIT_LIST_HEAD(&dev->sent);
	INIT_LIST_HEAD(&dev->run);
	INIT_LIST_HEAD(&dev->copied);
	INIT_LIST_HEAD(&dev->failed);
	for (i = 0; i < DMU_ID_BUCKETS; i++)
		INIT_HLIST_HEAD(&dev->ids[i]);
	init_waitqueue_head(&dev->readable);
	INIT_WORK(&dev->run_work, dmu_run_work);
	INIT_WORK(&dev->copied_work, dmu_copied_work);
	INIT_WORK(&dev->drain_work, dmu_drain_work);
	INIT_DELAYED_WORK(&dev->promoted_work, dmu_promoted_work);
	INIT_DELAYED_WORK(&dev->no_daemon_work, dmu_no_daemon_work);
}

static struct dmu_device *dmu_device_alloc(struct mapped_device *md, const char *key)
{
	struct dmu_device *dev = kzalloc(sizeof(*dev), GFP_KERNEL);

	if (!dev)
		return NULL;
	dmu_device_init_state(dev);
	dev->md = md;
	dev->devt = disk_devt(dm_disk(md));
	strscpy(dev->key, key, sizeof(dev->key));
	dev->inflight = alloc_percpu(struct dmu_inflight);
	if (!dev->inflight)
		goto err;
	if (bioset_init(&dev->bs, DMU_RESERVED_IOS, offsetof(struct dmu_part, bio), 0))
		goto err;
	if (mempool_init_slab_pool(&dev->promotions, DMU_RESERVED_IOS, promotion_cache) ||
	    mempool_init_slab_pool(&dev->extent_pool, DMU_RESERVED_EXTENTS, extent_cache) ||
	    mempool_init_slab_pool(&dev->leaf_pool, DMU_RESERVED_LEAVES, leaf_cache) ||
	    mempool_init_kmalloc_pool(&dev->invalidation_pool, 1,
				      sizeof(struct dmu_invalidation)))
		goto err;
	dev->wq = alloc_workqueue("dmu-%u:%u", WQ_MEM_RECLAIM | WQ_UNBOUND, 0,
				  MAJOR(dev->devt), MINOR(dev->devt));
	if (!dev->wq)
		goto err;
	return dev;
err:
	dmu_device_free(dev);
	return NULL;
}

/* Of the constructor. The device of this md, made if need be; or an error. */
struct dmu_device *dmu_device_get(struct dm_target *ti, const char *key)
{
	struct mapped_device *md = dm_table_get_md(ti->table);
	struct dmu_device *dev;
	unsigned int noio;

	/* A daemon that attaches takes this lock; reclaim must not wait for it. */
	mutex_lock(&registry_lock);
	noio = memalloc_noio_save();
	list_for_each_entry(dev, &registry, list) {
		if (dev->md == md) {
			if (strcmp(dev->key, key)) {
				ti->error = "The key differs from that of the device's other table";
				dev = ERR_PTR(-EINVAL);
				goto out;
			}
			refcount_inc(&dev->ref);
			dev->tables++;
			goto out;
		}
		if (!strcmp(dev->key, key)) {
			ti->error = "The key is in use by another device";
			dev = ERR_PTR(-EEXIST);
			goto out;
		}
	}
	dev = dmu_device_alloc(md, key);
	if (!dev) {
		ti->error = "Cannot allocate the device";
		dev = ERR_PTR(-ENOMEM);
		goto out;
	}
	dev->tables = 1;
	list_add_tail(&dev->list, &registry);
out:
	memalloc_noio_restore(noio);
	mutex_unlock(&registry_lock);
	return dev;
}

/*
 * What was promoted stays until the channel closes: an open one may not have read
 * all of it, and the store must not lose what its users saw written.
 */
static void dmu_device_stop(struct dmu_device *dev)
{
	spin_lock_irq(&dev->lock);
	dev->gone = true;
	dev->replaying = false;
	dev->uncommitted = RB_ROOT_CACHED;
	dev->nr_uncommitted = 0;
	dmu_extent_drop_all(dev);
	spin_unlock_irq(&dev->lock);

	cancel_delayed_work_sync(&dev->no_daemon_work);
	cancel_delayed_work_sync(&dev->promoted_work);
	dmu_wake(dev);
}

/* Of the destructor. The last table takes the device out of the registry. */
void dmu_device_put_table(struct dmu_device *dev)
{
	bool last;

	mutex_lock(&registry_lock);
	last = !--dev->tables;
	if (last)
		list_del(&dev->list);
	mutex_unlock(&registry_lock);
	if (last)
		dmu_device_stop(dev);
	dmu_device_put(dev);
}

/* By key, or by devt if key is NULL. The caller puts it. */
struct dmu_device *dmu_device_find(const char *key, dev_t devt)
{
	struct dmu_device *dev;

	mutex_lock(&registry_lock);
	list_for_each_entry(dev, &registry, list) {
		if (key ? !strcmp(dev->key, key) : dev->devt == devt) {
			refcount_inc(&dev->ref);
			goto out;
		}
	}
	dev = NULL;
out:
	mutex_unlock(&registry_lock);
	return dev;
}

void dmu_device_put(struct dmu_device *dev)
{
	struct dmu_invalidation *inv, *next;

	if (!refcount_dec_and_test(&dev->ref))
		return;
	drain_workqueue(dev->wq);
	cancel_work_sync(&dev->copied_work);
	list_splice_init(&dev->invalidating, &dev->invalidated);
	list_for_each_entry_safe(inv, next, &dev->invalidated, list)
		dmu_invalidation_free(dev, inv);
	/* Extents and leaves go back to the pools after a grace period. */
	rcu_barrier();
	dmu_device_free(dev);
}

static struct dmu_extent *dmu_extent_setup(struct dmu_device *dev, struct dmu_extent *e)
{
	if (!e)
		return NULL;
	memset(e, 0, sizeof(*e));
	refcount_set(&e->c.ref, 1);
	e->c.dev = dev;
	INIT_LIST_HEAD(&e->c.lru);
	return e;
}

/* Zeroed, referenced once; NULL if even the reserve is in use. */
struct dmu_extent *dmu_extent_alloc(struct dmu_device *dev)
{
	return dmu_extent_setup(dev, mempool_alloc(&dev->extent_pool,
						   GFP_NOWAIT | __GFP_NOWARN));
}

/* What stays in the tree must not eat up the reserve that answers live on. */
struct dmu_extent *dmu_extent_piece(struct dmu_device *dev)
{
	return dmu_extent_setup(dev, kmem_cache_alloc(extent_cache,
						      GFP_NOWAIT | __GFP_NOWARN));
}

struct dmu_promotion *dmu_promotion_alloc(struct dmu_device *dev)
{
	return mempool_alloc(&dev->promotions, GFP_NOWAIT | __GFP_NOWARN);
}

/* The pools outlive this: dmu_device_put waits for it. */
static void dmu_extent_free_rcu(struct rcu_head *head)
{
	struct dmu_extent *e = container_of(head, struct dmu_extent, c.rcu);

	kvfree(e->leaves);
	mempool_free(e, &e->c.dev->extent_pool);
}

static void dmu_leaf_free_rcu(struct rcu_head *head)
{
	struct dmu_leaf *leaf = container_of(head, struct dmu_leaf, c.rcu);

	mempool_free(leaf, &leaf->c.dev->leaf_pool);
}

void dmu_extent_put(struct dmu_extent *e)
{
	if (refcount_dec_and_test(&e->c.ref))
		call_rcu(&e->c.rcu, dmu_extent_free_rcu);
}

void dmu_leaf_put(struct dmu_leaf *leaf)
{
	if (refcount_dec_and_test(&leaf->c.ref))
		call_rcu(&leaf->c.rcu, dmu_leaf_free_rcu);
}

int __init dmu_device_init(void)
{
	extent_cache = KMEM_CACHE(dmu_extent, 0);
	/* The daemon's bits are copied straight in. */
	leaf_cache = KMEM_CACHE_USERCOPY(dmu_leaf, 0, bits);
	promotion_cache = KMEM_CACHE(dmu_promotion, 0);
	if (!extent_cache || !leaf_cache || !promotion_cache)
		goto err;
	dmu_copied_wq = alloc_workqueue("dmu-copied", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!dmu_copied_wq)
		goto err;
	dmu_probe_init();
	if (dmu_kcopyd_init())
		goto err;
	return 0;
err:
	dmu_device_exit();
	return -ENOMEM;
}

void dmu_device_exit(void)
{
	rcu_barrier();
	dmu_kcopyd_exit();
	if (dmu_copied_wq)
		destroy_workqueue(dmu_copied_wq);
	kmem_cache_destroy(promotion_cache);
	kmem_cache_destroy(leaf_cache);
	kmem_cache_destroy(extent_cache);
}
