#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# SIGTERM of cowd under a verified load: it commits and leaves the devices up; the next
# cowd serves them on; what was written is there, also after detach and attach.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
size=$((64 << 20))
volumes base=64M cow=96M
need blockload fill "$(vol base)" "$WORK/base" --bytes "$size"
start_cowd

for mode in flush always transient; do
	name="stop and start $mode"
	cp "$WORK/base" "$WORK/state"
	new_store cow base disk "$mode" 4K
	blockload load /dev/mapper/disk "$WORK/state" --seed 5 --ops 700 >"$WORK/load" 2>&1 &
	load=$!
	for round in 1 2 3; do
		if end_cowd TERM; then
			ok "$name: round $round, cowd ended as asked"
		else
			not_ok "$name: round $round, cowd ended as asked" "status $?"
		fi
		if dmsetup info disk >/dev/null 2>&1; then
			ok "$name: round $round, the device stays"
		else
			not_ok "$name: round $round, the device stays" "it is gone"
		fi
		start_cowd
	done
	ended "$name: the load saw no error" "$load" "$WORK/load"
	check "$name: all is there" blockload verify /dev/mapper/disk "$WORK/state"
	if [[ $mode != transient ]]; then
		reattach cow base disk "$mode"
		check "$name: all is there after detach and attach" blockload verify /dev/mapper/disk "$WORK/state"
	fi
	need ctl detach disk
done
check "stop and start: the base is what it was" blockload verify "$(vol base)" "$WORK/base"
