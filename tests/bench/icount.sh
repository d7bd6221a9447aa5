#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# icount.sh [--subjects 'NAME...'] [--cases 'NAME...'] [--peers 'NAME...'] [--peer-cases 'NAME...']
# [--ms MS] [--rounds N] [--mib MIB]: in a machine whose clock counts instructions, what each
# subject, of MIB, makes of each case; and each peer, of what is perhaps fewer of them.
#
# fio tells its run time in whole milliseconds.  A case that ends when the disk is full
# takes what it takes; the others run MS milliseconds.

# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"

SUBJECTS='lv dm-linear dscow-flush dscow-always dscow-transient qcow2'
PEERS='dm-snapshot-64k dm-snapshot-4k dm-thin qemu-nbd-qcow2'
PEER_CASES=
CASES='rand-read-4k-base first-rand-write-4k first-rand-write-64k fsync-4k-first seq-write-1m-first
	seq-write-1m seq-read-1m rewrite-rand-4k rand-read-4k-store mixed-70-30-4k fsync-4k-rewrite small-files'
MS=2000
N=1
SIZE=1024
while (($#)); do
	case $1 in
	--subjects) SUBJECTS=$2 ;;
	--cases) CASES=$2 ;;
	--peers) PEERS=$2 ;;
	--peer-cases) PEER_CASES=$2 ;;
	--ms) MS=$2 ;;
	--rounds) N=$2 ;;
	--mib) SIZE=$2 ;;
	*)
		not_ok "icount.sh" "$1 is none of its options, which its first lines name"
		exit 1
		;;
	esac
	shift 2
done

wanted() { [[ " ${CASES//[$'\n\t']/ } " == *" $1 "* ]]; }
any_wanted() {
	local any
	for any; do
		wanted "$any" && return
	done
	return 1
}
async=(--ioengine=libaio --iodepth=16)
deep=(--ioengine=libaio --iodepth=4 --bs=1M)
single=(--ioengine=psync --bs=4k)
limited=(--time_based --runtime="${MS}ms")

# 4 KiB writes in random order, each the first and only one in its 64 KiB, so that they are
# first writes to every subject, whatever its granule.
make_trace() {
	python3 - "$((SIZE * 16))" >"$WORK/trace" <<-'END'
	import random, sys
	places = list(range(int(sys.argv[1])))
	random.Random(1).shuffle(places)
	print("fio version 2 iolog\n/dev/disk add\n/dev/disk open")
	for place in places:
	    print("/dev/disk write", place * 65536 + random.Random(place).randrange(16) * 4096, 4096)
	print("/dev/disk close")
	END
}

small_files() {
	need mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$DEV"
	need mount -o noatime "$DEV" "$MNT"
	measure small-files IOPS --directory="$MNT" --ioengine=psync \
		--rw=write --bs=4k --nrfiles=2000 --filesize=4k --create_on_open=1 --openfiles=1 \
		--file_service_type=sequential --fsync_on_close=1 --fallocate=none
	need umount "$MNT"
}

# On a store with nothing in it.
first_writes() {
	if any_wanted rand-read-4k-base first-rand-write-4k; then
		fresh "$1"
		# An image by itself has nothing under it.
		if wanted rand-read-4k-base && [[ $1 != *qcow2 ]]; then
			measure rand-read-4k-base IOPS "${async[@]}" --bs=4k --rw=randread "${limited[@]}"
		fi
		wanted first-rand-write-4k &&
			measure first-rand-write-4k IOPS "${async[@]}" --read_iolog="$WORK/trace" --replay_redirect="$DEV"
	fi
	if wanted first-rand-write-64k; then
		fresh "$1"
		measure first-rand-write-64k IOPS "${async[@]}" --bs=64k --rw=randwrite
	fi
	if wanted fsync-4k-first; then
		fresh "$1"
		measure fsync-4k-first IOPS "${single[@]}" --rw=write:60k --fdatasync=1 --io_size="$((SIZE / 16))M"
	fi
	if wanted small-files; then
		fresh "$1"
		small_files
	fi
}

# On one that has everything.
later() {
	any_wanted seq-write-1m-first seq-write-1m seq-read-1m rewrite-rand-4k rand-read-4k-store mixed-70-30-4k \
		fsync-4k-rewrite || return
	fresh "$1"
	measure seq-write-1m-first MiB/s "${deep[@]}" --rw=write
	wanted seq-write-1m && measure seq-write-1m MiB/s "${deep[@]}" --rw=write "${limited[@]}"
	wanted seq-read-1m && measure seq-read-1m MiB/s "${deep[@]}" --rw=read "${limited[@]}"
	wanted rewrite-rand-4k && measure rewrite-rand-4k IOPS "${async[@]}" --bs=4k --rw=randwrite "${limited[@]}"
	wanted rand-read-4k-store && measure rand-read-4k-store IOPS "${async[@]}" --bs=4k --rw=randread "${limited[@]}"
	wanted mixed-70-30-4k &&
		measure mixed-70-30-4k IOPS "${async[@]}" --bs=4k --rw=randrw --rwmixread=70 "${limited[@]}"
	wanted fsync-4k-rewrite &&
		measure fsync-4k-rewrite IOPS "${single[@]}" --rw=write:60k --fdatasync=1 "${limited[@]}"
}

need modprobe -a dm-userspace dm-snapshot dm-thin-pool
make_trace
make_ram "$(regions_mib "$SIZE")"
regions "$MEMORY" "$SIZE"
fill "$MEMORY" "$(regions_mib "$SIZE")"
start_cowd
for ((ROUND = 1; ROUND <= N; ROUND++)); do
	for each in $SUBJECTS; do
		first_writes "$each"
		later "$each"
	done
	all=$CASES
	CASES=${PEER_CASES:-$CASES}
	for each in $PEERS; do
		first_writes "$each"
		later "$each"
	done
	CASES=$all
done
drop
