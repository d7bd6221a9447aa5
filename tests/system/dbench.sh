#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# dbench on a file system on dscow, whose base has the empty file system, in each mode; fsck
# after, also after detach and attach.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes base=320M cow=352M
start_cowd

fsck_of() {
	case $1 in
	ext4) e2fsck -fn /dev/mapper/disk ;;
	xfs) xfs_repair -n /dev/mapper/disk ;;
	esac
}

# one_disk FS MODE GRANULE
one_disk() {
	local name="dbench $*"
	new_store cow base disk "$2" "$3"
	need mount -t "$1" /dev/mapper/disk "$MNT"
	check "$name" dbench -c /usr/share/dbench/client.txt -D "$MNT" -t 2 2
	need umount "$MNT"
	check "$name: fsck" fsck_of "$1"
	if [[ $2 != transient ]]; then
		reattach cow base disk "$2"
		check "$name: fsck after detach and attach" fsck_of "$1"
	fi
	need ctl detach disk
}

# Each mode on both file systems, and with both granules.
granule=4K
for fs in ext4 xfs; do
	wipefs -qa "$(vol base)"
	need "mkfs.$fs" -q "$(vol base)"
	for mode in flush always transient; do
		one_disk "$fs" "$mode" "$granule"
		if [[ $granule == 4K ]]; then granule=64K; else granule=4K; fi
	done
done
