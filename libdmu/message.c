// SPDX-License-Identifier: LGPL-2.1-or-later
/* Messages as text, for logs. */
#include <inttypes.h>
#include <stdio.h>

#include "internal.h"

static const char *type_name(uint32_t type)
{
	switch (type) {
	case DMU_MSG_FAULT: return "FAULT";
	case DMU_MSG_DONE: return "DONE";
	case DMU_MSG_PROMOTED: return "PROMOTED";
	case DMU_MSG_FLUSH: return "FLUSH";
	case DMU_MSG_DISCARD: return "DISCARD";
	case DMU_MSG_ZERO: return "ZERO";
	case DMU_MSG_INVALIDATED: return "INVALIDATED";
	case DMU_MSG_REPLAY_DONE: return "REPLAY_DONE";
	case DMU_MSG_ERROR: return "ERROR";
	case DMU_MSG_MAP: return "MAP";
	case DMU_MSG_BITMAP: return "BITMAP";
	case DMU_MSG_DATA: return "DATA";
	case DMU_MSG_FAIL: return "FAIL";
	case DMU_MSG_ACK: return "ACK";
	case DMU_MSG_COMMITTED: return "COMMITTED";
	case DMU_MSG_INVALIDATE: return "INVALIDATE";
	case DMU_MSG_RETRY: return "RETRY";
	default: return NULL;
	}
}

static const struct {
	uint32_t flag;
	const char *name;
} flag_names[] = {
	{ DMU_F_READ, "read" },		{ DMU_F_WRITE, "write" },
	{ DMU_F_LEAF, "leaf" },		{ DMU_F_REPLAY, "replay" },
	{ DMU_F_COPY_FIRST, "copy_first" }, { DMU_F_OVERLAY, "overlay" },
	{ DMU_F_SYNC, "sync" },		{ DMU_F_VOLATILE, "volatile" },
	{ DMU_F_TEMPORARY, "temporary" }, { DMU_F_UNCOMMITTED, "uncommitted" },
	{ DMU_F_ALL, "all" },
};

static void side(char *buf, size_t len, uint32_t dest, uint64_t sector)
{
	if (dest == DMU_DEST_NONE)
		snprintf(buf, len, "none");
	else if (dest == DMU_DEST_ZERO)
		snprintf(buf, len, "zero");
	else
		snprintf(buf, len, "%" PRIu32 "@%" PRIu64, dest, sector);
}

int dmu_msg_format(const struct dmu_msg *msg, char *buf, size_t len)
{
	const char *name = type_name(msg->type);
	char number[16], flags[128] = "", from[40], to[40];
	size_t i, used = 0;

	snprintf(number, sizeof(number), "type %" PRIu32, msg->type);
	for (i = 0; i < sizeof(flag_names) / sizeof(flag_names[0]); i++)
		if (msg->flags & flag_names[i].flag)
			used += snprintf(flags + used, sizeof(flags) - used, " %s",
					 flag_names[i].name);
	side(from, sizeof(from), msg->read_dest, msg->read_sector);
	side(to, sizeof(to), msg->write_dest, msg->write_sector);
	return snprintf(buf, len,
			"%s id %llu sectors %llu+%llu seq %llu gen %llu read %s write %s granule %u error %d data %u%s",
			name ? name : number, msg->id, msg->sector, msg->len, msg->seq, msg->gen,
			from, to, msg->granule, msg->error, msg->data_len, flags);
}
