#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# replay.sh MACHINE-ID [POINTS [SEED]]: the disk that write.sh was cut off from, as it may have been left at
# each of so many flushes and some of the writes after it. It must attach, its file
# system be sound, and all records be there that were acknowledged by then.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

MACHINE_ID=$1 # of the host that crashed, which comes up again here
POINTS=${2:-20}
SEED=${3:-$RANDOM}
MARK="acked 0 "
VG=vg
log=/dev/$(basename "$(dirname "$(grep -lx image /sys/block/vd*/serial)")")
disk=${LAB_DISKS%% *}
LAB_DISKS=$disk

# point FLUSH: what went wrong at it, if something did.
point() {
	local acked
	blkdiscard -f "$disk" && logreplay replay "$log" "$disk" "$MARK" "$1" "$SEED" || return
	lvm_on vgchange -qq -ay "$VG" || return
	acked=$(head -c 511 "$(vol acked)" | tr -d '\0' | awk '{ print $2 }')
	ctl attach --name p "dscow:$(vol cow):$(vol base)" || return
	mount -t ext4 /dev/mapper/p "$MNT" || return
	guestdisk appended "$MNT/records-5" 5 "$acked" || return
	umount "$MNT" || return
	e2fsck -f -n /dev/mapper/p || return
	ctl detach p || return
	ctl check "dscow:$(vol cow):$(vol base)" || return
	lvm_on vgchange -qq -an "$VG" || return
	echo "$acked records"
}
put_down() {
	umount "$MNT"
	ctl detach p
	lvm_on vgchange -qq -an "$VG"
} >/dev/null 2>&1

echo "$MACHINE_ID" >/etc/machine-id
need modprobe -a dm-userspace loop
# Just before a record is noted as safe is when to look whether it is.
mapfile -t flushes < <(logreplay flushes "$log" "$MARK" "acked ")
((${#flushes[@]} >= POINTS)) || {
	not_ok "points to look at" "there are ${#flushes[@]} only"
	exit 1
}
echo "# seed $SEED; ${#flushes[@]} notes"
start_cowd
for ((i = 1; i <= POINTS; i++)); do
	at=${flushes[$((${#flushes[@]} * i / POINTS - 1))]}
	check "power cut after flush $at" point "$at" || put_down
done
