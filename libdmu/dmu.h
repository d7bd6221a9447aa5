/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libdmu: device-mapper targets in userspace.
 *
 * Two halves. A *device* is a dm device with one "userspace" target; it is
 * created, loaded, suspended and removed through libdevmapper. A *channel* is
 * the open file through which one daemon serves one device: it receives the
 * kernel's messages and sends the daemon's (<linux/dm-userspace.h> says what
 * they mean). A program may use either half alone.
 *
 * Conventions of every declaration below, unless it says otherwise:
 *  - Sectors are 512 bytes. Sizes of structures and of payloads are in bytes.
 *  - Functions return 0 (or a count) or a negative errno, and set no errno.
 *    Those that take a struct dmu_error describe a failure there in a sentence;
 *    the pointer may be NULL and on success nothing is written.
 *  - The caller owns what it passes; the library copies what it keeps. Strings
 *    in structures that the library fills are arrays inside the structure.
 *  - Structures with a size field: the caller sets it to sizeof(struct) before
 *    the call. Fields are only ever added at the end, so programs and libraries
 *    of different ages understand each other; what the older one does not know
 *    is 0. A set field that the library is too old for gives -E2BIG.
 *
 * Threads. The device functions may be called from any thread; no lock is held
 * while one of them waits for I/O or for udev. They block, so a daemon must not
 * call them where it answers the very device they wait for. Two threads may not
 * use one channel at once, save that one may receive while another sends.
 * libdevmapper itself is not safe for threads: a program that also calls it
 * directly has to keep those calls apart from these. Its messages are taken
 * over by dm_log_with_errno_init() at the first device call.
 */
#ifndef DMU_H
#define DMU_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include <linux/dm-userspace.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DMU_TARGET	"userspace"	/* the name of the target type */
#define DMU_UUID_PREFIX	"DMU-"		/* every uuid of ours begins with it */
#define DMU_NAME_MAX	128		/* bytes of a device name, NUL included */
#define DMU_UUID_MAX	129		/* bytes of a uuid, prefix and NUL included */
#define DMU_PATH_MAX	256		/* bytes of a path in what the library fills */

/**
 * struct dmu_error - why a call failed
 * @code: negative errno, the same that the call returned
 * @text: a sentence that names the object and what is wrong, NUL terminated
 *
 * Has no size field: it never changes.
 */
struct dmu_error {
	int code;
	char text[508];
};

/* ------------------------------------------------------------ devices --- */

/* flags of struct dmu_spec, struct dmu_dest and of the calls below */
#define DMU_READ_ONLY		(1U << 0)	/* device, or destination: never written */
#define DMU_NO_UDEV_SCAN	(1U << 1)	/* udev makes the nodes and reads nothing */
#define DMU_NOFLUSH		(1U << 2)	/* suspend: waiting bios are pushed back */
#define DMU_SKIP_LOCKFS		(1U << 3)	/* suspend: do not freeze a file system */
#define DMU_DEFERRED		(1U << 4)	/* remove: at the last close if in use now */

/* values of dmu_spec.no_daemon */
enum dmu_no_daemon {
	DMU_NO_DAEMON_DEFAULT = 0,	/* what the module does by itself */
	DMU_NO_DAEMON_QUEUE = 1,	/* queue_if_no_daemon */
	DMU_NO_DAEMON_FAIL = 2,		/* fail_if_no_daemon <no_daemon_secs> */
};

/**
 * struct dmu_dest - a destination in the table
 * @path:	a block device's path or "major:minor", without white space
 * @flags:	DMU_READ_ONLY or 0
 * @reserved:	0
 */
struct dmu_dest {
	const char *path;
	uint32_t flags;
	uint32_t reserved;
};

/**
 * struct dmu_spec - what a device is to be
 * @size:	sizeof(struct dmu_spec)
 * @name:	of the dm device; any bytes but '/', fewer than DMU_NAME_MAX
 * @uuid:	with or without DMU_UUID_PREFIX; NULL for none. Not used by reload
 * @key:	what a channel finds the device by; printable, without white space,
 *		fewer than DMU_KEY_MAX bytes
 * @sectors:	size of the device
 * @dests:	@num_dests destinations; index i here is destination i in messages
 * @num_dests:	at most DMU_MAX_DESTS
 * @flags:	DMU_READ_ONLY, DMU_NO_UDEV_SCAN
 * @no_daemon:	enum dmu_no_daemon
 * @no_daemon_secs: with DMU_NO_DAEMON_FAIL
 * @max_extents: 0: the module's default
 * @max_uncommitted: granules; 0: the module's default
 * @discard_granularity: bytes; 0: the device takes no discards
 * @write_zeroes: 1: the device advertises WRITE_ZEROES, if all destinations do
 */
struct dmu_spec {
	size_t size;
	const char *name;
	const char *uuid;
	const char *key;
	uint64_t sectors;
	const struct dmu_dest *dests;
	uint32_t num_dests;
	uint32_t flags;
	uint32_t no_daemon;
	uint32_t no_daemon_secs;
	uint32_t max_extents;
	uint32_t max_uncommitted;
	uint32_t discard_granularity;
	uint32_t write_zeroes;
};

/* flags of struct dmu_info */
#define DMU_INFO_SUSPENDED	(1U << 0)
#define DMU_INFO_READ_ONLY	(1U << 1)
#define DMU_INFO_LIVE_TABLE	(1U << 2)
#define DMU_INFO_INACTIVE_TABLE	(1U << 3)	/* loaded, not resumed yet */
#define DMU_INFO_DEFERRED_REMOVE (1U << 4)

/**
 * struct dmu_info - what device-mapper knows of a device
 * @size:	sizeof(struct dmu_info), in and out
 * @major:	of its block device
 * @minor:	of its block device
 * @open_count:	how many have it open
 * @event_nr:	grows with each dm event
 * @flags:	DMU_INFO_*
 * @reserved:	0
 * @name:	as given in struct dmu_spec
 * @uuid:	with DMU_UUID_PREFIX; empty if it has none
 * @path:	of the node below /dev/mapper
 */
struct dmu_info {
	size_t size;
	uint32_t major;
	uint32_t minor;
	uint32_t open_count;
	uint32_t event_nr;
	uint32_t flags;
	uint32_t reserved;
	char name[DMU_NAME_MAX];
	char uuid[DMU_UUID_MAX];
	char path[DMU_PATH_MAX];
};

/**
 * struct dmu_table_dest - a destination as the live table names it
 * @path:	"major:minor" from the kernel
 * @flags:	DMU_READ_ONLY or 0
 * @reserved:	0
 */
struct dmu_table_dest {
	char path[DMU_PATH_MAX];
	uint32_t flags;
	uint32_t reserved;
};

/**
 * struct dmu_table - a table line, taken apart
 * @size:	sizeof(struct dmu_table), in and out
 * @sectors:	size of the device
 *
 * The other fields are those of struct dmu_spec. 17 KiB: not for small stacks.
 */
struct dmu_table {
	size_t size;
	uint64_t sectors;
	uint32_t num_dests;
	uint32_t no_daemon;
	uint32_t no_daemon_secs;
	uint32_t max_extents;
	uint32_t max_uncommitted;
	uint32_t discard_granularity;
	uint32_t write_zeroes;
	uint32_t reserved;
	char key[DMU_KEY_MAX];
	struct dmu_table_dest dests[DMU_MAX_DESTS];
};

/* values of dmu_status.state */
enum dmu_state {
	DMU_STATE_UNKNOWN = 0,		/* a state that this library does not know */
	DMU_STATE_NO_DAEMON = 1,	/* no channel is attached */
	DMU_STATE_REPLAYING = 2,	/* attached, REPLAY_DONE not read yet */
	DMU_STATE_ACTIVE = 3,
	DMU_STATE_SUSPENDED = 4,
};

/**
 * struct dmu_status - a status line, taken apart
 * @size:	sizeof(struct dmu_status), in and out
 * @state:	enum dmu_state
 * @reserved:	0
 * @extents:	cached now
 * @max_extents: the most that are kept
 * @leaves:	bitmap leaves in memory
 * @faults_outstanding: asked and not answered
 * @bios_parked: waiting for the daemon, for room or for a granule
 * @uncommitted: granules promoted that no commit covers yet
 * @gen:	generation of the extents
 *
 * The rest counts since the device was made: @faults asked, @reads_parked and
 * @writes_parked bios, @promotions in granules, @copies and @copied_sectors by
 * kcopyd, @flushes seen, @daemon_flushes sent on as FLUSH, @evictions of cached
 * extents, @invalidations and @discards by message, @pushed maps taken,
 * @errors that completed a bio.
 */
struct dmu_status {
	size_t size;
	uint32_t state;
	uint32_t reserved;
	uint64_t extents;
	uint64_t max_extents;
	uint64_t leaves;
	uint64_t faults_outstanding;
	uint64_t bios_parked;
	uint64_t uncommitted;
	uint64_t gen;
	uint64_t faults;
	uint64_t reads_parked;
	uint64_t writes_parked;
	uint64_t promotions;
	uint64_t copies;
	uint64_t copied_sectors;
	uint64_t flushes;
	uint64_t daemon_flushes;
	uint64_t evictions;
	uint64_t invalidations;
	uint64_t discards;
	uint64_t pushed;
	uint64_t errors;
};

/**
 * dmu_create - make a device with a live table
 * @spec:	what it is to be
 * @info:	filled if not NULL (its size field set by the caller)
 * @err:	may be NULL
 *
 * All or nothing. Waits for udev, if that runs, to have made the nodes; makes
 * them itself if not. Errors: -EINVAL (a field is wrong, or the module refused
 * the table: the kernel log says why), -EBUSY (name or uuid is taken, or a
 * destination is in use), -ENOENT (no such destination), -ENODEV
 * (dm-userspace.ko is not loaded), -EPERM, -EACCES, -ENOMEM.
 */
int dmu_create(const struct dmu_spec *spec, struct dmu_info *info,
	       struct dmu_error *err);

/**
 * dmu_load - load a table beside the live one; it takes effect at the next resume
 *
 * The name in @spec says which device. Errors: as dmu_create; -ENXIO for no
 * such device. A table loaded earlier and not resumed is replaced.
 */
int dmu_load(const struct dmu_spec *spec, struct dmu_error *err);

/**
 * dmu_reload - dmu_load, dmu_suspend and dmu_resume
 * @flags:	DMU_NOFLUSH, DMU_SKIP_LOCKFS for the suspend
 *
 * If the load or the suspend fails, the device is as it was. If the resume
 * fails, it stays suspended under the new table.
 */
int dmu_reload(const struct dmu_spec *spec, uint32_t flags, struct dmu_error *err);

/**
 * dmu_suspend - hold the device's I/O
 * @name:	of the device
 * @flags:	DMU_NOFLUSH, DMU_SKIP_LOCKFS
 * @err:	may be NULL
 *
 * Waits for I/O under way, without DMU_NOFLUSH also for bios that wait for the
 * daemon. 0 if it is suspended already. -ENXIO: no such device. -EINTR: a
 * signal came, and the device is not suspended.
 */
int dmu_suspend(const char *name, uint32_t flags, struct dmu_error *err);

/**
 * dmu_resume - let I/O go on, under the table loaded last
 * @flags:	DMU_NO_UDEV_SCAN
 *
 * -ENXIO: no such device. -EINVAL: the module refused the table's size.
 */
int dmu_resume(const char *name, uint32_t flags, struct dmu_error *err);

/**
 * dmu_remove - remove a device
 * @flags:	DMU_DEFERRED, DMU_NO_UDEV_SCAN
 *
 * -EBUSY: it is open (without DMU_DEFERRED). -ENXIO: no such device.
 */
int dmu_remove(const char *name, uint32_t flags, struct dmu_error *err);

/**
 * dmu_wipe - fail all I/O of a device from now on, for ever
 * @flags:	DMU_NO_UDEV_SCAN
 *
 * Puts an error table in the place of the device's: bios that wait for the daemon
 * fail, I/O under way at the destinations is waited for, then the destinations are
 * free. The channel reads what was promoted, then ENODEV. -ENXIO: no such device.
 */
int dmu_wipe(const char *name, uint32_t flags, struct dmu_error *err);

/* dmu_get_info - -ENXIO: no such device. */
int dmu_get_info(const char *name, struct dmu_info *info, struct dmu_error *err);

/*
 * dmu_get_table, dmu_get_status - of the live table. -ENXIO: no such device;
 * -ENODATA: no live table; -EMEDIUMTYPE: not one "userspace" target; -EPROTO: a
 * line that cannot be understood. Neither waits for I/O.
 */
int dmu_get_table(const char *name, struct dmu_table *table, struct dmu_error *err);
int dmu_get_status(const char *name, struct dmu_status *status, struct dmu_error *err);

/* Called once a device; the info dies with the call. Not 0: stop with that. */
typedef int (*dmu_list_fn)(const struct dmu_info *info, void *context);

/**
 * dmu_list - every device whose live table is one "userspace" target
 *
 * Returns 0, what @fn returned, or a negative errno. Devices that come or go
 * meanwhile are told or not. @fn may call any function of this library.
 */
int dmu_list(dmu_list_fn fn, void *context, struct dmu_error *err);

/* dmu_target_version - of the loaded module: major, minor, patch level. -ENODEV
 * if it is not loaded. */
int dmu_target_version(uint32_t version[3], struct dmu_error *err);

/*
 * The text forms, for programs that talk to dmsetup. None needs a kernel.
 *
 * dmu_format_params - the target's parameters (the table line after its first
 * three words) as snprintf would: returns their length without the NUL even if
 * that is more than @len; -EINVAL or -E2BIG for a wrong spec.
 * dmu_parse_params - the reverse; -EPROTO. Fills all but sectors, which is 0.
 * dmu_parse_status - the status line; -EPROTO. Counters it does not know are
 * skipped, those that are not there are 0.
 */
int dmu_format_params(const struct dmu_spec *spec, char *buf, size_t len,
		      struct dmu_error *err);
int dmu_parse_params(const char *params, struct dmu_table *table, struct dmu_error *err);
int dmu_parse_status(const char *line, struct dmu_status *status, struct dmu_error *err);

/* dmu_state_name - the status line's word for it; "unknown" for others. */
const char *dmu_state_name(uint32_t state);

/* ------------------------------------------------------------ channel --- */

struct dmu_channel;	/* one open and attached channel */

/**
 * dmu_channel_open - open /dev/dm-userspace and attach to the device with @key
 * @key:	of the live table
 * @channel:	where the channel goes; give it to dmu_channel_close
 * @err:	may be NULL
 *
 * The file is O_CLOEXEC and O_NONBLOCK. Errors: -ENODEV (no such device, or it
 * has no live table), -EBUSY (served by another channel), -EPERM, -EACCES,
 * -EPROTO (another major version of the ABI), -ENOENT (no module), -ENAMETOOLONG.
 */
int dmu_channel_open(const char *key, struct dmu_channel **channel, struct dmu_error *err);

/* dmu_channel_open_dev - the same, by the dm device's major and minor. */
int dmu_channel_open_dev(uint32_t major, uint32_t minor, struct dmu_channel **channel,
			 struct dmu_error *err);

/**
 * dmu_channel_adopt - serve a channel that another process attached
 * @fd:		the file, now the channel's; on failure it is still the caller's
 * @attach:	what that process got from dmu_channel_attach
 */
int dmu_channel_adopt(int fd, const struct dmu_attach *attach, struct dmu_channel **channel,
		      struct dmu_error *err);

/* dmu_channel_close - what has no answer goes to the next channel. NULL is fine. */
void dmu_channel_close(struct dmu_channel *channel);

/* dmu_channel_fd - for poll(): POLLIN when there is a message, POLLHUP once the
 * device is gone. The file stays the channel's. */
int dmu_channel_fd(const struct dmu_channel *channel);

/* dmu_channel_attach - the kernel's answer to the attach; lives as long as the
 * channel, does not change. */
const struct dmu_attach *dmu_channel_attach(const struct dmu_channel *channel);

/**
 * dmu_channel_receive - read what the kernel has to say
 * @msgs:	room for @count messages, at least one
 *
 * Never blocks. Returns how many were read, -EAGAIN for none now, -ENODEV for a
 * device that is gone.
 */
ssize_t dmu_channel_receive(struct dmu_channel *channel, struct dmu_msg *msgs, size_t count);

/**
 * dmu_channel_send - give the kernel @count messages, in order
 * @msgs:	each message; payloads (data) are read during the call
 * @results:	NULL, or room for @count: 0 or a negative errno each
 *
 * One that is refused does not stop those behind it. -ENOENT for an id that is
 * unknown or was answered already is normal after a race. Returns how many were
 * accepted, or a negative errno if none could even be tried: -ENODEV for a
 * device that is gone (@results then say so too).
 */
ssize_t dmu_channel_send(struct dmu_channel *channel, const struct dmu_msg *msgs, size_t count,
			 int *results);

/* dmu_msg_format - one line for a log, as snprintf would. */
int dmu_msg_format(const struct dmu_msg *msg, char *buf, size_t len);

/* ----------------------------------------------------- building messages --- */

static inline struct dmu_msg dmu_msg_make(uint32_t type, uint64_t id)
{
	struct dmu_msg msg;

	memset(&msg, 0, sizeof(msg));
	msg.type = type;
	msg.id = id;
	return msg;
}

/*
 * MAP: answers id (FAULT, DISCARD, ZERO); with id 0 it is pushed, see
 * dmu_map_push. Both sides are DMU_DEST_NONE until dmu_map_read and
 * dmu_map_write name them; dest: an index, for reads also DMU_DEST_ZERO.
 */
static inline struct dmu_msg dmu_msg_map(uint64_t id, uint64_t sector, uint64_t len)
{
	struct dmu_msg msg = dmu_msg_make(DMU_MSG_MAP, id);

	msg.sector = sector;
	msg.len = len;
	msg.read_dest = DMU_DEST_NONE;
	msg.write_dest = DMU_DEST_NONE;
	return msg;
}

static inline void dmu_map_read(struct dmu_msg *map, uint32_t dest, uint64_t dest_sector)
{
	map->read_dest = dest;
	map->read_sector = dest_sector;
}

static inline void dmu_map_write(struct dmu_msg *map, uint32_t dest, uint64_t dest_sector)
{
	map->write_dest = dest;
	map->write_sector = dest_sector;
}

/* granule: in sectors, a power of two. */
static inline void dmu_map_overlay(struct dmu_msg *map, uint32_t granule)
{
	map->flags |= DMU_F_OVERLAY;
	map->granule = granule;
}

/* gen: the last one that was read (attach, FAULT, INVALIDATED, REPLAY_DONE). */
static inline void dmu_map_push(struct dmu_msg *map, uint64_t gen)
{
	map->id = 0;
	map->gen = gen;
}

/*
 * BITMAP: the leaf [sector, sector + len). bits: read during the send, bytes of
 * them; bytes 0: no granule is promoted. gen only with id 0, else 0.
 */
static inline struct dmu_msg dmu_msg_bitmap(uint64_t id, uint64_t gen, uint64_t sector,
					    uint64_t len, const void *bits, uint32_t bytes)
{
	struct dmu_msg msg = dmu_msg_make(DMU_MSG_BITMAP, id);

	msg.gen = gen;
	msg.sector = sector;
	msg.len = len;
	msg.data = (uint64_t)(uintptr_t)bits;
	msg.data_len = bytes;
	return msg;
}

/* BITMAP of a leaf of which every granule is promoted. */
static inline struct dmu_msg dmu_msg_bitmap_all(uint64_t id, uint64_t gen, uint64_t sector,
						uint64_t len)
{
	struct dmu_msg msg = dmu_msg_bitmap(id, gen, sector, len, NULL, 0);

	msg.flags = DMU_F_ALL;
	return msg;
}

/* DATA: bytes (a multiple of 512) of the read FAULT id, from sector on. */
static inline struct dmu_msg dmu_msg_data(uint64_t id, uint64_t sector, const void *data,
					  uint32_t bytes)
{
	struct dmu_msg msg = dmu_msg_make(DMU_MSG_DATA, id);

	msg.sector = sector;
	msg.len = bytes / 512;
	msg.data = (uint64_t)(uintptr_t)data;
	msg.data_len = bytes;
	return msg;
}

/* FAIL: error is a positive errno, 0 for EIO. */
static inline struct dmu_msg dmu_msg_fail(uint64_t id, int error)
{
	struct dmu_msg msg = dmu_msg_make(DMU_MSG_FAIL, id);

	msg.error = error;
	return msg;
}

/* ACK: of FLUSH, DONE, DISCARD, ZERO. */
static inline struct dmu_msg dmu_msg_ack(uint64_t id)
{
	return dmu_msg_make(DMU_MSG_ACK, id);
}

static inline struct dmu_msg dmu_msg_committed(uint64_t seq)
{
	struct dmu_msg msg = dmu_msg_make(DMU_MSG_COMMITTED, 0);

	msg.seq = seq;
	return msg;
}

/* INVALIDATE: id is the daemon's own, not 0; INVALIDATED brings it back. */
static inline struct dmu_msg dmu_msg_invalidate(uint64_t id, uint64_t sector, uint64_t len)
{
	struct dmu_msg msg = dmu_msg_make(DMU_MSG_INVALIDATE, id);

	msg.sector = sector;
	msg.len = len;
	return msg;
}

static inline struct dmu_msg dmu_msg_retry(uint64_t id)
{
	return dmu_msg_make(DMU_MSG_RETRY, id);
}

#ifdef __cplusplus
}
#endif

#endif /* DMU_H */
