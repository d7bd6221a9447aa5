#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# dbench on a file system on dscow, whose base has the empty file system; fsck after,
# also after detach and attach.

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

for fs in ext4 xfs; do
	wipefs -qa "$(vol base)"
	need "mkfs.$fs" -q "$(vol base)"
	granule=4K
	[[ $fs == ext4 ]] || granule=64K
	new_store cow base disk flush "$granule"
	need mount -t "$fs" /dev/mapper/disk "$MNT"
	check "dbench $fs $granule" dbench -c /usr/share/dbench/client.txt -D "$MNT" -t 8 2
	need umount "$MNT"
	check "dbench $fs $granule: fsck" fsck_of "$fs"
	reattach cow base disk flush
	check "dbench $fs $granule: fsck after detach and attach" fsck_of "$fs"
	need ctl detach disk
done
