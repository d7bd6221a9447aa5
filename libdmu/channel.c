// SPDX-License-Identifier: LGPL-2.1-or-later
/* The channel: one open and attached /dev/dm-userspace. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "internal.h"

#define CHANNEL_PATH	"/dev/" DMU_DEVICE_NAME
#define ENOMEM_TRIES	3	/* the kernel takes ENOMEM for worth a second try */

struct dmu_channel {
	int fd;
	struct dmu_attach attach;
};

static int attach_failed(struct dmu_error *err, int code, const char *what)
{
	switch (-code) {
	case ENODEV:
		return dmu_fail(err, code, "No live userspace device with %s.", what);
	case EBUSY:
		return dmu_fail(err, code,
				"The device with %s is served by another daemon; stop that first.",
				what);
	case EPERM:
		return dmu_fail(err, code, "Attaching to the device with %s needs CAP_SYS_ADMIN.",
				what);
	case EPROTO:
	case EINVAL:
		return dmu_fail(err, code,
				"The loaded dm-userspace module speaks another version than %d of the channel; update the one or the other.",
				DMU_ABI_MAJOR);
	default:
		return dmu_fail(err, code, "Cannot attach to the device with %s: %s.", what,
				strerror(-code));
	}
}

static int open_file(struct dmu_error *err)
{
	int fd = open(CHANNEL_PATH, O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		return fd;
	if (errno == ENOENT || errno == ENXIO || errno == ENODEV)
		return dmu_fail(err, -errno,
				CHANNEL_PATH " is not there; load the module with: modprobe dm-userspace");
	return dmu_fail(err, -errno, "Cannot open " CHANNEL_PATH ": %s.", strerror(errno));
}

static int channel_make(int fd, const struct dmu_attach *attach, struct dmu_channel **channel,
			struct dmu_error *err)
{
	struct dmu_channel *new = malloc(sizeof(*new));

	if (!new)
		return dmu_fail(err, -ENOMEM, "There is no memory for a channel.");
	new->fd = fd;
	new->attach = *attach;
	*channel = new;
	return 0;
}

static int channel_open(struct dmu_attach *attach, const char *what, struct dmu_channel **channel,
			struct dmu_error *err)
{
	int fd, r;

	attach->size = sizeof(*attach);
	attach->abi_major = DMU_ABI_MAJOR;
	attach->abi_minor = DMU_ABI_MINOR;

	fd = open_file(err);
	if (fd < 0)
		return fd;
	r = ioctl(fd, DMU_ATTACH, attach) ? attach_failed(err, -errno, what) : 0;
	if (!r)
		r = channel_make(fd, attach, channel, err);
	if (r)
		close(fd);
	return r;
}

int dmu_channel_open(const char *key, struct dmu_channel **channel, struct dmu_error *err)
{
	struct dmu_attach attach = { 0 };
	char what[DMU_KEY_MAX + 8];

	if (strlen(key) >= sizeof(attach.key))
		return dmu_fail(err, -ENAMETOOLONG, "A key has at most %d bytes.", DMU_KEY_MAX - 1);
	memcpy(attach.key, key, strlen(key));
	snprintf(what, sizeof(what), "key %s", key);
	return channel_open(&attach, what, channel, err);
}

int dmu_channel_open_dev(uint32_t major, uint32_t minor, struct dmu_channel **channel,
			 struct dmu_error *err)
{
	struct dmu_attach attach = {
		.flags = DMU_ATTACH_BY_DEV,
		.dev_major = major,
		.dev_minor = minor,
	};
	char what[48];

	snprintf(what, sizeof(what), "number %u:%u", major, minor);
	return channel_open(&attach, what, channel, err);
}

int dmu_channel_adopt(int fd, const struct dmu_attach *attach, struct dmu_channel **channel,
		      struct dmu_error *err)
{
	int flags = fcntl(fd, F_GETFL);

	if (attach->size != sizeof(*attach))
		return dmu_fail(err, -EINVAL, "What came with the channel is of another version.");
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC))
		return dmu_fail(err, -errno, "Cannot set up the channel's file: %s.",
				strerror(errno));
	return channel_make(fd, attach, channel, err);
}

void dmu_channel_close(struct dmu_channel *channel)
{
	if (!channel)
		return;
	close(channel->fd);
	free(channel);
}

int dmu_channel_fd(const struct dmu_channel *channel)
{
	return channel->fd;
}

const struct dmu_attach *dmu_channel_attach(const struct dmu_channel *channel)
{
	return &channel->attach;
}

ssize_t dmu_channel_receive(struct dmu_channel *channel, struct dmu_msg *msgs, size_t count)
{
	ssize_t n;

	do {
		n = read(channel->fd, msgs, count * sizeof(*msgs));
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n / (ssize_t)sizeof(*msgs);
}

/* One write(): how many were taken, or the errno of the first. */
static ssize_t send_some(struct dmu_channel *channel, const struct dmu_msg *msgs, size_t count)
{
	int tries = ENOMEM_TRIES;
	ssize_t n;

	do {
		n = write(channel->fd, msgs, count * sizeof(*msgs));
	} while (n < 0 && (errno == EINTR || (errno == ENOMEM && --tries)));
	return n < 0 ? -errno : n / (ssize_t)sizeof(*msgs);
}

/*
 * The kernel stops at a wrong message and counts those before it; the wrong
 * one's errno is what the next call, which begins with it, returns.
 */
ssize_t dmu_channel_send(struct dmu_channel *channel, const struct dmu_msg *msgs, size_t count,
			 int *results)
{
	size_t done = 0, accepted = 0;
	ssize_t n;

	while (done < count) {
		n = send_some(channel, msgs + done, count - done);
		if (n == -ENODEV || n == -EBADF || n == 0)
			break;
		if (results && n < 0)
			results[done] = (int)n;
		else if (results)
			memset(results + done, 0, n * sizeof(*results));
		accepted += n > 0 ? n : 0;
		done += n > 0 ? n : 1;
	}
	if (done == count)
		return accepted;
	if (n == 0)	/* no kernel of ours does that; do not spin on it */
		n = -EIO;
	while (results && done < count)
		results[done++] = (int)n;
	return accepted ? (ssize_t)accepted : n;
}
