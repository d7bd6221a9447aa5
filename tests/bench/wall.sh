#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# wall.sh ROUNDS SECONDS PEER_ROUNDS: dbench with 4 and 16 clients on ext4, by the wall clock, on a virtio
# disk that the host has given all its blocks.  A round is every subject once, and begins
# with another one each time; what a host does to it, it does to all.  The peers take part in the
# first PEER_ROUNDS only: they are far off, and a round of theirs takes as long.

# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"

INSTRUMENT=wall
ROUNDS=$1
EACH=$2
PEER_ROUNDS=$3
OURS=(lv dscow-flush dscow-transient)
PEERS=(dm-snapshot-64k dm-snapshot-4k dm-thin)

# Whatever lies under a copy-on-write subject has an empty file system; so do the others.
# dm-thin's pool takes base too, so that the next one has to make it anew.
make_file_system() {
	case $1 in
	lv | dm-linear | dm-thin) mkfs_on "$DEV" ;;
	esac
	[[ $1 != dm-thin ]] || base_has_one=
}
mkfs_on() { need mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$1"; }
make_base() {
	drop
	[[ $base_has_one ]] || mkfs_on /dev/mapper/base
	base_has_one=yes
}

run_dbench() {
	timeout 600 dbench -c /usr/share/dbench/client.txt -D "$MNT" -t "$EACH" "$1" >"$WORK/dbench" 2>&1
}

# one CASE CLIENTS SUBJECT
one() {
	local rate
	make_base
	fresh "$3"
	make_file_system "$3"
	need mount -o noatime "$DEV" "$MNT"
	need run_dbench "$2"
	rate=$(awk '/^Throughput/ { print $2 }' "$WORK/dbench")
	need test -n "$rate"
	record "$1" MB/s "$rate"
	need umount "$MNT"
}

disk=${LAB_DISKS%% *}
need modprobe -a dm-userspace dm-snapshot dm-thin-pool
regions "$disk" 2560
fill "$disk" "$(regions_mib 2560)"
base_has_one=
start_cowd
for ((ROUND = 1; ROUND <= ROUNDS; ROUND++)); do
	subjects=("${OURS[@]}")
	((ROUND > PEER_ROUNDS)) || subjects+=("${PEERS[@]}")
	for clients in 4 16; do
		for ((i = 0; i < ${#subjects[@]}; i++)); do
			one "dbench-$clients" "$clients" "${subjects[(i + ROUND) % ${#subjects[@]}]}"
		done
	done
done
drop
