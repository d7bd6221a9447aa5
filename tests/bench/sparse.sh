#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# sparse.sh: a disk of 16 TiB with a million promoted granules all over it, 16 MiB apart: what
# kernel and cowd keep in memory for it, and how long it takes to attach.  What is written
# goes to a target that keeps none of it; only the store's own blocks are on a disk in memory.

# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"

INSTRUMENT=wall
ROUND=1
TIB=16
GRANULES=$((1 << 20))
# Where the data area begins at the latest: 32 KiB of bitmap a GiB, an index of it, headers.
METADATA_MIB=$((TIB * 32 + 64))

make_disks() {
	local sectors=$((TIB << 31)) meta
	meta=$(sectors "$METADATA_MIB")
	need modprobe dm-zero
	need modprobe brd rd_nr=1 rd_size=$((METADATA_MIB * 1024))
	fill /dev/ram0 "$METADATA_MIB"
	need dmsetup create base --table "0 $sectors zero"
	need dmsetup create cow <<-END
		0 $meta linear /dev/ram0 0
		$meta $((sectors + meta)) zero
	END
	need udevadm settle
}

# What is neither free nor a cache that the kernel would give back.
used_kib() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	awk '{ m[$1] = $2 } END { print m["MemTotal:"] - m["MemFree:"] - m["Buffers:"] - m["Cached:"] - m["SReclaimable:"] }' /proc/meminfo
}

attach_timed() {
	local began=$EPOCHREALTIME
	attached --durability flush dscow:/dev/mapper/cow:/dev/mapper/base
	record "scattered-attach-$1" ms $(((${EPOCHREALTIME/./} - ${began/./}) / 1000))
}

# touch CASE FIO-ARGUMENT...: every granule once
touch_all() {
	local before now
	before=$(used_kib)
	run_fio --name="$1" --filename="$DEV" --direct=1 --ioengine=libaio --iodepth=16 --bs=4k \
		--io_size=$((GRANULES * 4))k "${@:2}"
	now=$(used_kib)
	record "$1-seconds" s $(($(fio_ms) / 1000))
	record "$1-grown" MiB $(((now - before) / 1024))
}

need modprobe dm-userspace
make_disks
start_cowd
SUBJECT=dscow-flush
nothing=$(used_kib)
need ctl create --force dscow:/dev/mapper/cow:/dev/mapper/base
attach_timed empty
touch_all scattered-writes --rw=write:16380k
record scattered-leaves leaves "$(dmsetup status --noflush disk | awk '{ print $6 }')"
record scattered-memory MiB $((($(used_kib) - nothing) / 1024))
record scattered-cowd MiB "$(awk '/^VmRSS:/ { print int($2 / 1024) }' "/proc/$cowd_pid/status")"
need until_true 60 ctl detach disk
attach_timed full
record scattered-memory-attached MiB $((($(used_kib) - nothing) / 1024))
touch_all scattered-reads --rw=read:16380k
record scattered-memory-read MiB $((($(used_kib) - nothing) / 1024))
dmsetup status --noflush disk
ctl stats --json disk | jq -c '.devices[0]'
need until_true 60 ctl detach disk
SUBJECT=
