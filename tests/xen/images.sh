#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A guest whose disks are images in files: a qcow2 over a chain of two, and a vhd. What it
# wrote is in them for qemu-img, and what lies under them is as it was.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

KIB=65536
FOLDER=/srv/images # of the example
tear_down() {
	systemctl stop cowd.socket cowd
	umount "$FOLDER"
	rmdir "$FOLDER"
}

# holds FORMAT FILE SEED: for qemu-img, what guestdisk scattered.
holds() {
	qemu-img convert -f "$1" -O raw "$2" "$FOLDER/contents" &&
		guestdisk scattered "$FOLDER/contents" "$3" 100 "$KIB"
	local status=$?
	rm -f "$FOLDER/contents"
	return "$status"
}

volumes images=640M
need mke2fs -q -t ext4 /dev/vg/images
need mkdir -p "$FOLDER"
need mount /dev/vg/images "$FOLDER"
need truncate -s $((KIB * 1024)) "$FOLDER/golden.raw"
need guestdisk write "$FOLDER/golden.raw" 3 0 "$KIB"
need qemu-img create -q -f qcow2 -b golden.raw -F raw "$FOLDER/golden.qcow2"
need qemu-img create -q -f qcow2 -b golden.qcow2 -F qcow2 "$FOLDER/web.qcow2"
need qemu-img create -q -f vpc -o force_size=on "$FOLDER/data.vhd" $((KIB * 1024))
need systemctl start cowd.socket cowd
need cowctl attach --name golden "qcow2:$FOLDER/golden.qcow2"
need guestdisk scatter /dev/mapper/golden 8 100 "$KIB"
need cowctl detach golden
sums=$(sum_of "$FOLDER/golden.raw")$(sum_of "$FOLDER/golden.qcow2")
before=$(leftovers)

create_from i "$TOP/xl-config-examples/images.cfg" || exit
in_guest i size xvda $((KIB * 2))
in_guest i flushes xvda
in_guest i scattered xvda 8 100 "$KIB"
in_guest i scatter xvda 9 100 "$KIB"
in_guest i scattered xvda 9 100 "$KIB"
in_guest i scatter xvdb 10 100 "$KIB"
refuse "the image under it has a reader" "xvdc" \
	xl block-attach i "script=block-dmu,vdev=xvdc,access=w,target=qcow2:$FOLDER/golden.qcow2"
begin i '&' scatter xvda 11 100 "$KIB"
job=$BEGUN
check "cowd is killed" systemctl kill -s KILL cowd
finish_in i "$job" "its writes go on"
in_guest i scattered xvda 11 100 "$KIB"
in_guest i scattered xvdb 10 100 "$KIB"
in_guest i poweroff
gone i
same_leftovers "nothing is left" "$before" "cowd's threads"
check "qemu-img reads what it wrote to the qcow2" holds qcow2 "$FOLDER/web.qcow2" 11
check "and to the vhd" holds vpc "$FOLDER/data.vhd" 10
check "what cowd left of its death is leaks at most" cowctl check --repair "qcow2:$FOLDER/web.qcow2"
check "qemu-img check" qemu-img check -q "$FOLDER/web.qcow2"
check "what lies under it is as it was" test \
	"$(sum_of "$FOLDER/golden.raw")$(sum_of "$FOLDER/golden.qcow2")" = "$sums"
