// SPDX-License-Identifier: GPL-2.0-only
/*
 * Why a copy could not be written: kcopyd does not say. A full destination is waited
 * for (K14), a broken one is not. So what was to be copied is written with zeroes,
 * which nobody reads before the granule is promoted, and the status of that decides.
 * If it works (there is room again, or the destination takes zeroes only as data, not
 * as kcopyd sends them), zeroes are what was wanted, or the copy is made again, once.
 *
 * One promotion of a device at a time, with a bio that is there for it: nothing is
 * allocated (K2) and nothing waited for. What failed meanwhile on the same destination
 * shares the fate of one that fails. All of it in copied_work alone, but for the end
 * of the bio. Not by blkdev_issue_zeroout, which allocates and waits, and which a full
 * file under a loop device answers with EIO.
 */
#include <linux/blkdev.h>

#include "dmu.h"

#define DMU_PROBE_PAGES 16

static struct bio_vec zeroes[DMU_PROBE_PAGES];

static void dmu_probe_end_io(struct bio *bio)
{
	struct dmu_device *dev = container_of(bio, struct dmu_device, probe.bio);
	unsigned long irq;

	spin_lock_irqsave(&dev->lock, irq);
	dev->probe.ended = true;
	queue_work(dmu_copied_wq, &dev->copied_work);
	spin_unlock_irqrestore(&dev->lock, irq);
}

/* The next zeroes; false if there are no more to write. */
static bool dmu_probe_submit(struct dmu_probe *probe)
{
	struct dmu_promotion *p = probe->p;
	struct bio *bio = &probe->bio;
	u64 before, after, len;

	dmu_copied_runs(p, p->bio, &before, &after, &len);
	if (probe->at >= before && probe->at < after)
		probe->at = after;
	if (probe->at == len)
		return false;
	probe->sectors = min_t(u64, (probe->at < before ? before : len) - probe->at,
			       DMU_PROBE_PAGES * (PAGE_SIZE >> SECTOR_SHIFT));
	bio_init(bio, p->io->t->dests[p->to.dest].dm->bdev, zeroes, DMU_PROBE_PAGES,
		 REQ_OP_WRITE);
	bio->bi_vcnt = DIV_ROUND_UP(probe->sectors, PAGE_SIZE >> SECTOR_SHIFT);
	bio->bi_iter.bi_sector = p->to.sector + probe->at;
	bio->bi_iter.bi_size = probe->sectors << SECTOR_SHIFT;
	bio->bi_end_io = dmu_probe_end_io;
	submit_bio_noacct(bio);
	return true;
}

static void dmu_probe_next(struct dmu_device *dev)
{
	struct dmu_probe *probe = &dev->probe;

	if (probe->p)
		return;
	probe->p = list_first_entry_or_null(&dev->failed, struct dmu_promotion, list);
	if (!probe->p)
		return;
	list_del(&probe->p->list);
	probe->at = 0;
	dmu_probe_submit(probe);
}

/* Takes p, whose copies could not be written. */
void dmu_probe(struct dmu_device *dev, struct dmu_promotion *p)
{
	list_add_tail(&p->list, &dev->failed);
	dmu_probe_next(dev);
}

static void dmu_probed(struct dmu_promotion *p, blk_status_t status)
{
	struct bio *bio = p->bio;

	p->status = status;
	if (status) {
		bio->bi_status = status;
		bio_endio(bio);
	} else if (p->from.dest == DMU_DEST_ZERO) {
		submit_bio_noacct(bio);
	} else {
		p->again = true;
		dmu_start_copies(p);
	}
}

void dmu_probe_go_on(struct dmu_device *dev)
{
	struct dmu_probe *probe = &dev->probe;
	struct dmu_promotion *p = probe->p, *next;
	blk_status_t status;
	u32 dest;
	bool ended;

	spin_lock_irq(&dev->lock);
	ended = probe->ended;
	probe->ended = false;
	spin_unlock_irq(&dev->lock);
	if (!ended)
		return;
	status = probe->bio.bi_status;
	bio_uninit(&probe->bio);
	probe->at += probe->sectors;
	if (!status && dmu_probe_submit(probe))
		return;

	probe->p = NULL;
	dest = p->to.dest;
	dmu_probed(p, status);
	list_for_each_entry_safe(p, next, &dev->failed, list) {
		if (!status || p->to.dest != dest)
			continue;
		list_del(&p->list);
		dmu_probed(p, status);
	}
	dmu_probe_next(dev);
}

void __init dmu_probe_init(void)
{
	int i;

	for (i = 0; i < DMU_PROBE_PAGES; i++) {
		zeroes[i].bv_page = ZERO_PAGE(0);
		zeroes[i].bv_len = PAGE_SIZE;
	}
}
