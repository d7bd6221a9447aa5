// SPDX-License-Identifier: GPL-2.0-only
/*
 * The channel: an open file of /dev/dm-userspace, bound to a device by DMU_ATTACH.
 * What is told in which order: promotions, REPLAY_DONE, INVALIDATED, items. So a
 * FLUSH is never read before the promotions that it covers.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "dmu.h"

struct dmu_channel {
	struct mutex lock;		/* attach and read, one at a time */
	struct dmu_device *dev;		/* set once */
};

static struct dmu_device *dmu_channel_dev(struct file *file)
{
	struct dmu_channel *ch = file->private_data;

	/* Pairs with the release in dmu_channel_bind. */
	return smp_load_acquire(&ch->dev);
}

static int dmu_channel_open(struct inode *inode, struct file *file)
{
	struct dmu_channel *ch = kzalloc(sizeof(*ch), GFP_KERNEL);

	if (!ch)
		return -ENOMEM;
	mutex_init(&ch->lock);
	file->private_data = ch;
	return nonseekable_open(inode, file);
}

static void dmu_channel_unbind(struct dmu_channel *ch, struct dmu_device *dev)
{
	struct dmu_invalidation *inv, *next;

	spin_lock_irq(&dev->lock);
	dev->channel = NULL;
	dev->attach_no++;
	dev->replay_wanted = false;
	dev->replaying = false;
	dmu_items_requeue_sent(dev);
	list_splice_init(&dev->invalidating, &dev->invalidated);
	list_for_each_entry_safe(inv, next, &dev->invalidated, list) {
		list_del(&inv->list);
		dmu_invalidation_free(dev, inv);
	}
	dmu_no_daemon(dev);
	dmu_event(dev);
	spin_unlock_irq(&dev->lock);
}

static int dmu_channel_release(struct inode *inode, struct file *file)
{
	struct dmu_channel *ch = file->private_data;

	if (ch->dev) {
		dmu_channel_unbind(ch, ch->dev);
		dmu_device_put(ch->dev);
	}
	mutex_destroy(&ch->lock);
	kfree(ch);
	return 0;
}

static void dmu_attach_reply(struct dmu_device *dev, struct dmu_attach *a)
{
	a->abi_major = DMU_ABI_MAJOR;
	a->abi_minor = min_t(u16, a->abi_minor, DMU_ABI_MINOR);
	a->dev_major = MAJOR(dev->devt);
	a->dev_minor = MINOR(dev->devt);
	a->num_dests = dev->live->num_dests;
	a->sectors = dev->sectors;
	a->gen = dev->gen;
	a->leaf_granules = DMU_LEAF_GRANULES;
	a->max_extents = dev->max_extents;
	a->logical_block_size = dev->logical_block_size;
	strscpy_pad(a->key, dev->key, sizeof(a->key));
}

static int dmu_channel_bind(struct dmu_channel *ch, struct dmu_device *dev, struct dmu_attach *a)
{
	int r = 0;

	spin_lock_irq(&dev->lock);
	if (dev->gone || !dev->live) {
		r = -ENODEV;
	} else if (dev->channel) {
		r = -EBUSY;
	} else {
		dev->channel = ch;
		dev->attach_no++;
		dev->failing = false;
		dev->replay_wanted = true;
		dev->replaying = true;
		dmu_extent_drop_unbacked(dev);
		dev->epoch++;
		dmu_replay_reset(dev);
		dmu_attach_reply(dev, a);
		/* Pairs with the acquire in dmu_channel_dev. */
		smp_store_release(&ch->dev, dev);
		dmu_drain(dev);
		dmu_event(dev);
	}
	spin_unlock_irq(&dev->lock);
	return r;
}

static int dmu_attach_check(const struct dmu_attach *a)
{
	if (a->size != sizeof(*a))
		return -EINVAL;
	if (a->abi_major != DMU_ABI_MAJOR)
		return -EPROTO;
	if (a->flags & ~DMU_ATTACH_BY_DEV)
		return -EINVAL;
	if (memchr_inv(a->reserved, 0, sizeof(a->reserved)) || a->reserved0)
		return -EINVAL;
	if (strnlen(a->key, sizeof(a->key)) == sizeof(a->key))
		return -EINVAL;
	return 0;
}

static int dmu_channel_attach(struct dmu_channel *ch, struct dmu_attach __user *arg)
{
	struct dmu_device *dev;
	struct dmu_attach a;
	int r;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (copy_from_user(&a, arg, sizeof(a)))
		return -EFAULT;
	r = dmu_attach_check(&a);
	if (r)
		return r;
	if (ch->dev)
		return -EBUSY;
	if (a.flags & DMU_ATTACH_BY_DEV)
		dev = dmu_device_find(NULL, MKDEV(a.dev_major, a.dev_minor));
	else
		dev = dmu_device_find(a.key, 0);
	if (!dev)
		return -ENODEV;
	r = dmu_channel_bind(ch, dev, &a);
	if (r) {
		dmu_device_put(dev);
		return r;
	}
	/* Bound all the same: the daemon sees the error and closes. */
	return copy_to_user(arg, &a, sizeof(a)) ? -EFAULT : 0;
}

static long dmu_channel_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct dmu_channel *ch = file->private_data;
	long r;

	if (cmd != DMU_ATTACH)
		return -ENOTTY;
	if (mutex_lock_interruptible(&ch->lock))
		return -ERESTARTSYS;
	r = dmu_channel_attach(ch, (struct dmu_attach __user *)arg);
	mutex_unlock(&ch->lock);
	return r;
}

static bool dmu_invalidated_pop(struct dmu_device *dev, struct dmu_msg *msg)
{
	struct dmu_invalidation *inv;

	inv = list_first_entry_or_null(&dev->invalidated, struct dmu_invalidation, list);
	if (!inv)
		return false;
	msg->type = DMU_MSG_INVALIDATED;
	msg->id = inv->id;
	msg->gen = inv->gen;
	list_del(&inv->list);
	dmu_invalidation_free(dev, inv);
	return true;
}

static bool dmu_pop(struct dmu_device *dev, struct dmu_msg *msg)
{
	if (dev->replay_wanted)
		return false;
	if (dmu_promoted_pop(dev, msg))
		return true;
	if (dev->replaying && dev->replay_more)
		return false;
	if (dev->replaying) {
		dev->replaying = false;
		msg->type = DMU_MSG_REPLAY_DONE;
		msg->gen = dev->gen;
		return true;
	}
	return dmu_invalidated_pop(dev, msg) || dmu_item_pop(dev, msg);
}

static bool dmu_readable(struct dmu_device *dev)
{
	bool r;

	spin_lock_irq(&dev->lock);
	r = dev->gone ||
	    (!dev->replay_wanted &&
	     (dev->replaying || !list_empty(&dev->invalidated) || !list_empty(&dev->queue) ||
	      (dev->promoted_due && dev->nr_unread)));
	spin_unlock_irq(&dev->lock);
	return r;
}

/* 1: a message; 0: none; or an error. */
static int dmu_read_one(struct dmu_device *dev, struct dmu_msg __user *slot)
{
	struct dmu_msg msg = { };
	bool got, gone, more;

	/* If the slot cannot be written to, find out before a message is taken. */
	if (clear_user(slot, sizeof(*slot)))
		return -EFAULT;
	do {
		spin_lock_irq(&dev->lock);
		gone = dev->gone;
		got = gone ? dmu_promoted_pop(dev, &msg) : dmu_pop(dev, &msg);
		more = dev->replaying && dev->replay_more;
		spin_unlock_irq(&dev->lock);
		cond_resched();
	} while (!gone && !got && more);
	if (!got)
		return gone ? -ENODEV : 0;
	return copy_to_user(slot, &msg, sizeof(msg)) ? -EFAULT : 1;
}

static ssize_t dmu_read_many(struct dmu_device *dev, char __user *buf, size_t slots)
{
	size_t n;
	int r = 0;

	for (n = 0; n < slots; n++) {
		r = dmu_read_one(dev, (struct dmu_msg __user *)(buf + n * sizeof(struct dmu_msg)));
		if (r <= 0)
			break;
		cond_resched();
	}
	if (n)
		return n * sizeof(struct dmu_msg);
	return r ?: -EAGAIN;
}

static ssize_t dmu_channel_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct dmu_channel *ch = file->private_data;
	struct dmu_device *dev = dmu_channel_dev(file);
	ssize_t r;

	if (!dev)
		return -ENOTCONN;
	if (count < sizeof(struct dmu_msg))
		return -EINVAL;
	for (;;) {
		if (mutex_lock_interruptible(&ch->lock))
			return -ERESTARTSYS;
		r = dmu_read_many(dev, buf, count / sizeof(struct dmu_msg));
		mutex_unlock(&ch->lock);
		if (r != -EAGAIN || (file->f_flags & O_NONBLOCK))
			return r;
		r = wait_event_interruptible(dev->readable, dmu_readable(dev));
		if (r)
			return r;
	}
}

static ssize_t dmu_channel_write(struct file *file, const char __user *buf, size_t count,
				 loff_t *pos)
{
	struct dmu_device *dev = dmu_channel_dev(file);
	struct dmu_msg msg;
	size_t done;
	int r;

	if (!dev)
		return -ENOTCONN;
	if (!count || count % sizeof(msg))
		return -EINVAL;
	for (done = 0; done < count; done += sizeof(msg)) {
		if (copy_from_user(&msg, buf + done, sizeof(msg)))
			r = -EFAULT;
		else
			r = dmu_message(dev, &msg);
		if (r)
			return done ?: r;
		cond_resched();
	}
	return done;
}

static __poll_t dmu_channel_poll(struct file *file, poll_table *wait)
{
	struct dmu_device *dev = dmu_channel_dev(file);

	if (!dev)
		return EPOLLERR;
	poll_wait(file, &dev->readable, wait);
	if (READ_ONCE(dev->gone))
		return EPOLLHUP | EPOLLERR | EPOLLIN;
	return EPOLLOUT | EPOLLWRNORM | (dmu_readable(dev) ? EPOLLIN | EPOLLRDNORM : 0);
}

static const struct file_operations dmu_channel_fops = {
	.owner = THIS_MODULE,
	.open = dmu_channel_open,
	.release = dmu_channel_release,
	.read = dmu_channel_read,
	.write = dmu_channel_write,
	.poll = dmu_channel_poll,
	.unlocked_ioctl = dmu_channel_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice dmu_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = DMU_DEVICE_NAME,
	.fops = &dmu_channel_fops,
	.mode = 0600,
};

int __init dmu_channel_init(void)
{
	BUILD_BUG_ON(sizeof(struct dmu_msg) != 96);
	BUILD_BUG_ON(sizeof(struct dmu_attach) != 216);
	return misc_register(&dmu_misc);
}

void dmu_channel_exit(void)
{
	misc_deregister(&dmu_misc);
}
