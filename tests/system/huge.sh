#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A disk of 64 TiB in a sparse file: its bitmap, 2 GiB of it, is neither written when it is
# created nor read when it is attached; its first and its last block work.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
size=$((64 << 40))
few=$((16 << 10))	# KiB: a 128th of the bitmap; udev reads some, too
volumes base=32M huge=400M
dd if=/dev/urandom of="$(vol base)" bs=1M count=32 oflag=direct status=none
need mkfs.xfs -q "$(vol huge)"
need mount "$(vol huge)" "$MNT"
store=$MNT/store
spec="dscow:$store:$(vol base)"
start_cowd

# kib_of DEVICE read|written: since it is there.
kib_of() {
	local fields
	read -ra fields <"/sys/block/$(basename "$(readlink -f "$1")")/stat"
	case $2 in
	read) echo $((fields[2] / 2)) ;;
	written) echo $((fields[6] / 2)) ;;
	esac
}
is_few() { (($1 <= few)) || { echo "$1 KiB"; return 1; }; }
since() { echo $(((${EPOCHREALTIME/./} - ${1/./}) / 1000)); }

sync -f "$MNT"
before=$(kib_of "$(vol huge)" written) began=$EPOCHREALTIME
need ctl create "$spec" 64T
took=$(since "$began")
sync -f "$MNT"
written=$(($(kib_of "$(vol huge)" written) - before))
echo "# figure: a disk of 64 TiB: created in $took ms, $written KiB written"
check "huge: create writes little" is_few "$written"
check "huge: the store takes little room" is_few "$(du -k "$store" | cut -f 1)"
check "huge: and has room for the whole disk" test "$(stat -c %s "$store")" -gt "$size"

# attach WHAT: a loop device goes on counting where those before it on this boot have stopped.
attach() {
	local loop read written
	local -A read_before=() written_before=()
	for loop in /sys/block/loop*; do
		loop=/dev/${loop##*/}
		read_before[$loop]=$(kib_of "$loop" read) written_before[$loop]=$(kib_of "$loop" written)
	done
	began=$EPOCHREALTIME
	need ctl attach --name disk "$spec"
	took=$(since "$began")
	loop=$(losetup -n -O NAME -j "$store")
	read=$(($(kib_of "$loop" read) - ${read_before[$loop]:-0}))
	written=$(($(kib_of "$loop" written) - ${written_before[$loop]:-0}))
	echo "# figure: $1 in $took ms, $read KiB read and $written KiB written"
	check "huge: $1, little is read" is_few "$read"
	check "huge: $1, little is written" is_few "$written"
}
# block FILE AT: 4 KiB of the disk
block() { dd if=/dev/mapper/disk of="$1" bs=4k count=1 skip=$(($2 / 4096)) iflag=direct status=none; }
holds() { block "$WORK/block" "$1" && cmp "$WORK/block" "$2"; }
write_block() { dd if="$2" of=/dev/mapper/disk bs=4k count=1 seek=$(($1 / 4096)) oflag=direct conv=fsync,notrunc status=none; }

attach "attached"
check "huge: the device has 64 TiB" test "$(blockdev --getsize64 /dev/mapper/disk)" = "$size"
dd if="$(vol base)" of="$WORK/base" bs=4k count=1 skip=1 iflag=direct status=none
head -c 4096 /dev/zero >"$WORK/zero"
head -c 4096 /dev/urandom >"$WORK/first"
head -c 4096 /dev/urandom >"$WORK/last"
check "huge: the last block is empty" holds $((size - 4096)) "$WORK/zero"
check "huge: the first block is written" write_block 0 "$WORK/first"
check "huge: the last block is written" write_block $((size - 4096)) "$WORK/last"
blocks_are_right() {
	check "huge: $1, the first block" holds 0 "$WORK/first"
	check "huge: $1, the second is the base's" holds 4096 "$WORK/base"
	check "huge: $1, behind the base all is empty" holds $((size / 2)) "$WORK/zero"
	check "huge: $1, the one before the last" holds $((size - 8192)) "$WORK/zero"
	check "huge: $1, the last block" holds $((size - 4096)) "$WORK/last"
}
blocks_are_right "written"
need ctl detach disk
check "huge: the store is clean" ctl check "$spec"
attach "attached again"
blocks_are_right "attached again"
need ctl detach disk
sync -f "$MNT"
check "huge: the store still takes little room" is_few "$(du -k "$store" | cut -f 1)"
