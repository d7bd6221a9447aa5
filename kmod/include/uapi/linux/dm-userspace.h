/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR LGPL-2.1-or-later */
/*
 * dm-userspace: the channel between a device-mapper device whose target is
 * "userspace" and the daemon that decides where its blocks live.
 *
 * One misc device, /dev/dm-userspace. A daemon opens it (O_CLOEXEC), binds the
 * open file to one device with DMU_ATTACH (CAP_SYS_ADMIN) and from then on
 * read()s and write()s whole struct dmu_msg, as many in a call as it likes.
 * poll() tells when there is something to read. One channel a device: a second
 * attach gets EBUSY until the last close of the first.
 *
 * Everything is in the byte order of the machine, of fixed width and explicitly
 * padded, hence the same for a 32-bit and a 64-bit process. Sectors are 512
 * bytes. Fields that a message does not name are 0 from the kernel and must be
 * 0 from the daemon (EINVAL otherwise).
 *
 * read():  EAGAIN with O_NONBLOCK and nothing to tell; EINVAL for a buffer
 *          shorter than one message; ENODEV once the device is gone
 *          and what it had promoted has been read; EFAULT
 *          loses no message. A partial last slot of the buffer is left alone.
 * write(): messages are taken in order. A wrong one stops the call: the return
 *          value counts the bytes before it, or, if it is the first, is its
 *          errno. The daemon skips it and goes on. EINVAL for a length that is
 *          not a multiple of one message; ENOENT for an id that is unknown or
 *          already answered (normal after a race); ENODEV for a device that is
 *          gone; ENOMEM is worth a second try, all others are not.
 * poll():  EPOLLIN when read() would not block; EPOLLHUP once the device is gone.
 */
#ifndef _UAPI_LINUX_DM_USERSPACE_H
#define _UAPI_LINUX_DM_USERSPACE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DMU_DEVICE_NAME		"dm-userspace"	/* under /dev */
#define DMU_ABI_MAJOR		1	/* must be equal on both sides */
#define DMU_ABI_MINOR		0	/* the lower of the two is spoken */

#define DMU_KEY_MAX		128	/* bytes, the final NUL included */
#define DMU_MAX_DESTS		64	/* destinations in one table */
#define DMU_LEAF_GRANULES	32768	/* granules in one bitmap leaf: 4 KiB of bits */
#define DMU_DATA_MAX		(4U << 20)	/* bytes that one DATA may carry */

/**
 * struct dmu_attach - argument of DMU_ATTACH
 * @size:	in: sizeof(struct dmu_attach); EINVAL if the kernel's differs
 * @abi_major:	in: DMU_ABI_MAJOR of the daemon, EPROTO if the kernel's differs;
 *		out: the kernel's
 * @abi_minor:	in: of the daemon; out: the lower of both
 * @flags:	in: DMU_ATTACH_BY_DEV or 0
 * @dev_major:	in with DMU_ATTACH_BY_DEV, out always: the dm device
 * @dev_minor:	the same
 * @num_dests:	out: destinations in the live table
 * @sectors:	out: size of the device, in sectors
 * @gen:	out: generation, see DMU_MSG_MAP
 * @leaf_granules: out: DMU_LEAF_GRANULES of the kernel
 * @max_extents: out: how many extents and leaves the kernel keeps at most
 * @logical_block_size: out: bytes
 * @reserved0:	0
 * @reserved:	0
 * @key:	in without DMU_ATTACH_BY_DEV, out always: the table's key
 *
 * Errors: EPERM without CAP_SYS_ADMIN, ENODEV for no such device or one without
 * a live table, EBUSY if another channel serves it or this file is bound already.
 */
struct dmu_attach {
	__u32 size;
	__u16 abi_major;
	__u16 abi_minor;
	__u32 flags;
	__u32 dev_major;
	__u32 dev_minor;
	__u32 num_dests;
	__u64 sectors;
	__u64 gen;
	__u32 leaf_granules;
	__u32 max_extents;
	__u32 logical_block_size;
	__u32 reserved0;
	__u64 reserved[4];
	char key[DMU_KEY_MAX];
};

#define DMU_ATTACH_BY_DEV	(1U << 0)	/* find by dev_major:dev_minor, not by key */

#define DMU_IOC_MAGIC		0xDE
#define DMU_ATTACH		_IOWR(DMU_IOC_MAGIC, 0x40, struct dmu_attach)

/* Kernel to daemon. */
enum dmu_kernel_msg {
	/*
	 * Bios wait for a mapping of [sector, sector + len). flags: DMU_F_READ or
	 * DMU_F_WRITE for the access, DMU_F_LEAF if an overlay extent is there and
	 * only the bits of this leaf are missing (sector, len: the whole leaf).
	 * id, gen. Answers: MAP, BITMAP (to DMU_F_LEAF), DATA (to a read), FAIL.
	 * An answer for a part of the range is fine: what remains faults again.
	 */
	DMU_MSG_FAULT = 1,
	/*
	 * A write under a SYNC extent has reached write_dest; its completion is
	 * held. id, sector, len, write_dest, write_sector (DMU_DEST_NONE and 0 if it
	 * was answered in pieces, which may be in several places), seq (of its
	 * PROMOTED, read before this; 0 if nothing was promoted). Answers: ACK once metadata
	 * and data are durable (the promotions in the range, up to seq, count as
	 * committed), or FAIL.
	 * The destination has NOT been flushed.
	 */
	DMU_MSG_DONE = 2,
	/*
	 * Granules [sector, sector + len) hold their data at write_dest from
	 * write_sector on. seq: grows from message to message; DMU_F_VOLATILE: from a
	 * volatile extent, seq 0. DMU_F_REPLAY: told to an earlier daemon or to
	 * none. No answer; COMMITTED(seq) or an ACK of FLUSH covers it later.
	 */
	DMU_MSG_PROMOTED = 3,
	/*
	 * All destinations have been flushed. id, seq: make the metadata of every
	 * promotion up to seq durable. Answers: ACK
	 * (counts as COMMITTED(seq)), FAIL. COMMITTED that covers seq ends it as
	 * well; a later ACK gets ENOENT then.
	 */
	DMU_MSG_FLUSH = 4,
	/*
	 * A discard of [sector, len) where no overlay serves it. id.
	 * Answers: ACK (done, or ignored), MAP with a write side (the discard is
	 * passed down to it), FAIL. A daemon that frees the space sends INVALIDATE
	 * and reads INVALIDATED before it ACKs.
	 */
	DMU_MSG_DISCARD = 5,
	/*
	 * Zeroes are to be written to [sector, len) and no write side is known.
	 * id. Answers: MAP with a write side, ACK (reads give zeroes now; extents in
	 * the range are dropped), FAIL.
	 */
	DMU_MSG_ZERO = 6,
	/* No I/O that used what INVALIDATE(id) dropped is under way any more. id, gen. */
	DMU_MSG_INVALIDATED = 7,
	/* All that an earlier daemon left has been told. gen. */
	DMU_MSG_REPLAY_DONE = 8,
	/*
	 * A write of [sector, len) failed at write_dest, write_sector with error
	 * (ENOSPC) and is held. id. Answers: RETRY (there is room now), FAIL.
	 */
	DMU_MSG_ERROR = 9,
};

/* Daemon to kernel. */
enum dmu_daemon_msg {
	/*
	 * Map [sector, sector + len). id: of the FAULT, DISCARD or ZERO that it
	 * answers, or 0: pushed, fills holes only, gen must be the current
	 * generation (the last one read; ESTALE if something has been dropped since).
	 * read_dest, read_sector: where reads go; DMU_DEST_ZERO: zeroes;
	 * DMU_DEST_NONE: reads fault. write_dest, write_sector: the same for writes,
	 * without DMU_DEST_ZERO. flags: DMU_F_COPY_FIRST, DMU_F_OVERLAY (granule, in
	 * sectors, a power of two), DMU_F_SYNC, DMU_F_VOLATILE, DMU_F_TEMPORARY,
	 * DMU_F_UNCOMMITTED. An answer replaces plain extents without
	 * a write side that it overlaps, and fills the holes among the others; EBUSY
	 * if it is itself an overlay or COPY_FIRST and not wholly in a hole.
	 * EROFS: write side on a destination that the table calls ro; ERANGE: beyond
	 * the device or the destination; ENXIO: no such destination; EEXIST: a
	 * pushed overlay that is not wholly in a hole; E2BIG: more than max_extents
	 * overlays and pinned extents.
	 */
	DMU_MSG_MAP = 32,
	/*
	 * The promoted bits of one leaf: sector, len of the whole leaf; data,
	 * data_len: bit g of the little-endian bit string is granule g of the leaf;
	 * data_len 0: none promoted, or all with DMU_F_ALL. id of the FAULT or 0 with
	 * gen (as MAP). OR-ed with what the kernel knows.
	 */
	DMU_MSG_BITMAP = 33,
	/*
	 * Bytes for the read FAULT id, from sector on: data, data_len (a multiple
	 * of 512, at most DMU_DATA_MAX); sector, len say the same in sectors.
	 */
	DMU_MSG_DATA = 34,
	/* id fails with error (a positive errno; 0 means EIO). */
	DMU_MSG_FAIL = 35,
	/* id is done: FLUSH, DONE, DISCARD, ZERO. */
	DMU_MSG_ACK = 36,
	/* Everything up to seq is durable. EINVAL if seq was not read yet. */
	DMU_MSG_COMMITTED = 37,
	/*
	 * Forget [sector, sector + len): extents, and leaves of overlays that are
	 * not wholly in it. id: the daemon's, not 0; INVALIDATED(id) follows. A FAULT in
	 * the range that was read but not answered comes again under a new id. ENOMEM
	 * too where 16384 have not ended or been read.
	 */
	DMU_MSG_INVALIDATE = 38,
	/* Submit again what ERROR id told of. */
	DMU_MSG_RETRY = 39,
};

/* flags of FAULT */
#define DMU_F_READ		(1U << 0)
#define DMU_F_WRITE		(1U << 1)
#define DMU_F_LEAF		(1U << 2)
/* flags of PROMOTED */
#define DMU_F_REPLAY		(1U << 3)
/*
 * flags of MAP (DMU_F_VOLATILE also of PROMOTED):
 * COPY_FIRST	the whole range, at most 65536 sectors, is one granule: its first
 *		write copies from the read side what it does not cover
 * OVERLAY	granules not promoted are read from the read side; the first write
 *		of a granule promotes it
 * SYNC		hold the write that promotes (under a plain extent: every write)
 *		until the ACK of DONE
 * VOLATILE	nothing is ever committed: FLUSH never asks
 * TEMPORARY	for the bios of this fault only
 * UNCOMMITTED	metadata does not back this yet: told as PROMOTED at once if the
 *		extent is plain; COPY_FIRST and OVERLAY imply it, with each granule's
 *		first write. Not with TEMPORARY, if plain; SYNC not with VOLATILE
 */
#define DMU_F_COPY_FIRST	(1U << 8)
#define DMU_F_OVERLAY		(1U << 9)
#define DMU_F_SYNC		(1U << 10)
#define DMU_F_VOLATILE		(1U << 11)
#define DMU_F_TEMPORARY		(1U << 12)
#define DMU_F_UNCOMMITTED	(1U << 13)
/* flags of BITMAP */
#define DMU_F_ALL		(1U << 16)

#define DMU_DEST_NONE		0xffffffffU
#define DMU_DEST_ZERO		0xfffffffeU

/**
 * struct dmu_msg - every message in both directions
 * @type:	DMU_MSG_*
 * @flags:	DMU_F_*
 * @id:		never reused by the kernel
 * @sector:	first virtual sector
 * @len:	sectors
 * @seq:	promotion sequence number
 * @gen:	generation of the kernel's extents
 * @read_sector: sector on read_dest; 0 if that is DMU_DEST_ZERO or _NONE
 * @write_sector: sector on write_dest
 * @read_dest:	index into the table's destinations, or DMU_DEST_*
 * @write_dest:	the same
 * @granule:	sectors
 * @error:	a positive errno
 * @data:	address of the payload in the daemon, read during write()
 * @data_len:	bytes of it
 * @reserved:	0
 */
struct dmu_msg {
	__u32 type;
	__u32 flags;
	__u64 id;
	__u64 sector;
	__u64 len;
	__u64 seq;
	__u64 gen;
	__u64 read_sector;
	__u64 write_sector;
	__u32 read_dest;
	__u32 write_dest;
	__u32 granule;
	__s32 error;
	__u64 data;
	__u32 data_len;
	__u32 reserved;
};

#endif /* _UAPI_LINUX_DM_USERSPACE_H */
