// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * dmu-stripe NAME CHUNK_KIB DEVICE...: a striped device, as dm-stripe makes it,
 * with the arithmetic in userspace. It creates /dev/mapper/NAME, says "ready"
 * and serves it until it is removed (dmsetup remove NAME). The kernel asks once
 * for each chunk and then does the I/O by itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/fs.h>

#include "dmu.h"

#define BATCH 64

static uint64_t chunk;		/* sectors */
static uint32_t stripes;

static uint64_t device_sectors(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t bytes = 0;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		perror(path);
	if (fd >= 0)
		close(fd);
	return bytes / 512;
}

/* Chunk n of the device is chunk n / stripes of destination n % stripes. */
static struct dmu_msg map_chunk(uint64_t id, uint64_t n)
{
	struct dmu_msg map = dmu_msg_map(id, n * chunk, chunk);

	dmu_map_read(&map, n % stripes, n / stripes * chunk);
	dmu_map_write(&map, n % stripes, n / stripes * chunk);
	return map;
}

/*
 * The fault's first chunk answers it; the others are pushed before that, so that
 * the bios that waited find them there. A push that comes too late for its
 * generation (ESTALE) costs a fault and nothing else.
 */
static int answer(struct dmu_channel *channel, const struct dmu_msg *fault)
{
	uint64_t first = fault->sector / chunk;
	uint64_t last = (fault->sector + fault->len - 1) / chunk;
	struct dmu_msg out[BATCH];
	size_t count = 0;

	if (last - first >= BATCH)
		last = first + BATCH - 1;
	while (last > first) {
		out[count] = map_chunk(0, last--);
		dmu_map_push(&out[count++], fault->gen);
	}
	out[count++] = map_chunk(fault->id, first);
	return dmu_channel_send(channel, out, count, NULL) < 0;
}

static int answer_all(struct dmu_channel *channel)
{
	struct dmu_msg in[BATCH], done;
	ssize_t i, n = dmu_channel_receive(channel, in, BATCH);

	for (i = 0; i < n; i++) {
		done = dmu_msg_ack(in[i].id);
		if (in[i].type == DMU_MSG_FAULT)
			answer(channel, &in[i]);
		else if (in[i].type == DMU_MSG_DISCARD || in[i].type == DMU_MSG_ZERO)
			done = map_chunk(in[i].id, in[i].sector / chunk);
		else if (in[i].type != DMU_MSG_FLUSH)
			continue;
		if (in[i].type != DMU_MSG_FAULT)
			dmu_channel_send(channel, &done, 1, NULL);
	}
	return n < 0 && n != -EAGAIN ? (int)n : 0;
}

static int serve(struct dmu_channel *channel)
{
	struct pollfd wait = { .fd = dmu_channel_fd(channel), .events = POLLIN };
	int r = 0;

	puts("ready");
	fflush(stdout);
	while (!r && (poll(&wait, 1, -1) >= 0 || errno == EINTR)) {
		if (wait.revents & POLLHUP)
			return 0;
		r = answer_all(channel);
	}
	return r == -ENODEV ? 0 : 1;
}

int main(int argc, char **argv)
{
	struct dmu_spec spec = { .size = sizeof(spec), .flags = DMU_NO_UDEV_SCAN };
	struct dmu_dest dests[DMU_MAX_DESTS] = { 0 };
	struct dmu_channel *channel;
	uint64_t sectors, least = UINT64_MAX;
	struct dmu_error err;
	int i, r;

	if (argc < 4 || argc - 3 > DMU_MAX_DESTS || atoi(argv[2]) < 4) {
		fprintf(stderr, "usage: dmu-stripe NAME CHUNK_KIB DEVICE...\n");
		return 2;
	}
	chunk = strtoull(argv[2], NULL, 10) * 2;
	stripes = argc - 3;
	for (i = 3; i < argc; i++) {
		dests[i - 3].path = argv[i];
		sectors = device_sectors(argv[i]);
		least = sectors < least ? sectors : least;
	}
	spec.name = spec.key = spec.uuid = argv[1];
	spec.sectors = least / chunk * chunk * stripes;
	spec.dests = dests;
	spec.num_dests = stripes;

	if (dmu_create(&spec, NULL, &err) || dmu_channel_open(argv[1], &channel, &err)) {
		fprintf(stderr, "dmu-stripe: %s\n", err.text);
		return 1;
	}
	r = serve(channel);
	dmu_channel_close(channel);
	return r;
}
