#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A random file-system load of many processes, run once on an LV and once on dscow with
# the same seed over a base that has a file system with files in it: the trees must be
# the same, fsck clean, the base untouched.  On both file systems, in all modes, with both
# granules.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
processes=6
volumes base=320M plain=320M cow=352M
start_cowd

fsck_of() {
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac
}

# load DEVICE SEED OPERATIONS, of each process
load() {
	need mount "$1" "$MNT"
	fsload run "$MNT" "$2" "$processes" "$3" || return 1
	need umount "$MNT"
}

# tree_of DEVICE: read anew, from the disk.
tree_of() {
	need mount -o ro "$1" "$MNT"
	fsload tree "$MNT" >"$WORK/tree" || return 1
	need umount "$MNT"
	cat "$WORK/tree"
}

same_tree() {
	tree_of /dev/mapper/disk >"$WORK/tree-of-dscow" || return 1
	diff "$WORK/tree-of-plain" "$WORK/tree-of-dscow" >"$WORK/diff" || {
		head -n 3 "$WORK/diff"
		return 1
	}
	echo "$(wc -l <"$WORK/tree-of-plain") names"
}

# one_disk FS MODE GRANULE
one_disk() {
	local name="fs-workload $1 $2 $3"
	new_store cow base disk "$2" "$3"
	check "$name: the load" load /dev/mapper/disk 2 100
	if [[ $2 != transient ]]; then
		reattach cow base disk "$2"
	fi
	check "$name: fsck" fsck_of "$1" /dev/mapper/disk
	check "$name: the same tree as on the LV" same_tree
	need ctl detach disk
}

# Mounted once, so that the log has been replayed and nothing is left to be written.
make_base() {
	wipefs -qa "$(vol base)"
	need "mkfs.$1" -q "$(vol base)"
	check "fs-workload $1: the load that fills the base" load "$(vol base)" 1 250
	need dd if="$(vol base)" of="$(vol plain)" bs=1M oflag=direct status=none
	base_sum=$(sum_of "$(vol base)")
}

for fs in ext4 xfs; do
	make_base "$fs"
	check "fs-workload $fs: the load on the LV" load "$(vol plain)" 2 100
	check "fs-workload $fs: fsck of the LV" fsck_of "$fs" "$(vol plain)"
	tree_of "$(vol plain)" >"$WORK/tree-of-plain" || not_ok "fs-workload $fs: tree of the LV" "it cannot be read"
	for granule in 4K 64K; do
		for mode in flush always transient; do
			one_disk "$fs" "$mode" "$granule"
		done
	done
	if [[ $(sum_of "$(vol base)") == "$base_sum" ]]; then
		ok "fs-workload $fs: the base is what it was"
	else
		not_ok "fs-workload $fs: the base is what it was" "its sha256 is another"
	fi
done
