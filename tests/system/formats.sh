#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Images of other formats, in files, served by cowd and judged by qemu-img: a partition of
# each is mounted with three commands, a file-system load and a verified load with cowd
# killed run on it, and what is in the file afterwards is what was on the device.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
IMAGES=$WORK/images
start=$((1 << 20)) # byte of the partition
size=$((64 << 20))

volumes images=2G
need mkfs.ext4 -q "$(vol images)"
mkdir "$IMAGES"
need mount "$(vol images)" "$IMAGES"
start_cowd

# A disk with a partition that has files in it.
make_disk() {
	need truncate -s "$size" "$IMAGES/disk.raw"
	need sfdisk -q "$IMAGES/disk.raw" <<<"$((start / 512)),,L"
	need mkfs.ext4 -q -E "offset=$start" "$IMAGES/disk.raw" "$(((size - start) / 1024))k"
	need mount -o "loop,offset=$start" "$IMAGES/disk.raw" "$MNT"
	need fsload run "$MNT" 1 3 60
	need umount "$MNT"
	raw_sum=$(sum_of "$IMAGES/disk.raw")
}

# What qemu-img says is in an image: contents FORMAT FILE
contents() {
	rm -f "$WORK/contents"
	qemu-img convert -f "$1" -O raw "$2" "$IMAGES/contents" || return
	sum_of "$IMAGES/contents"
	rm "$IMAGES/contents"
}
same_contents() { [[ $(contents "$1" "$2") == "$(sum_of "$3")" ]]; }

# The three commands of the README, and back.
mount_partition() {
	ctl attach --name disk "$1" && kpartx -a -s /dev/mapper/disk && mount /dev/mapper/disk1 "$MNT"
}
unmount_partition() {
	umount "$MNT" && kpartx -d -s /dev/mapper/disk && ctl detach disk
}

# A loop device goes a moment after its last user.
no_loops() { [[ -z $(losetup -a) ]]; }

# sound FORMAT FILE: qemu-img finds neither errors nor leaks.
sound() {
	qemu-img check -q -f "$1" "$2"
	local status=$?
	# It has no check for some formats.
	((status == 0 || status == 63)) || qemu-img check -f "$1" "$2"
}

# sound_after_kills NAME OUR-FORMAT QEMU-FORMAT FILE: no errors. What a killed cowd was about to
# use may have leaked, which repair gives back.
sound_after_kills() {
	local status
	qemu-img check -f "$3" "$4" >"$WORK/check" 2>&1
	status=$?
	if ((status == 3)); then
		echo "# $1: $(grep -i 'leaked' "$WORK/check" | tail -n 1)"
		ctl check --repair "$2:$4" >>"$WORK/check" 2>&1
	elif ((status != 0 && status != 63)); then
		not_ok "$1: no errors after the kills" "$(tail -n 3 "$WORK/check" | tr '\n' ' ')"
	fi
	check "$1: sound after the kills" sound "$3" "$4"
}

writes() { awk '{ print $5 }' "/sys/block/$(basename "$(readlink -f /dev/mapper/disk)")/stat"; }
more_writes_or_ended() { (($(writes) > seen + 8)) || ! kill -0 "$1"; }

# killed NAME TIMES PID LOG [SIGNAL]: cowd, while the load PID goes on, which must end well,
# by itself or by SIGNAL.
killed() {
	local kills
	for ((kills = 0; kills < $2; kills++)); do
		seen=$(writes)
		until_true 30 more_writes_or_ended "$3" || not_ok "$1" "the load does not write"
		kill -0 "$3" 2>/dev/null || break
		end_cowd KILL
		start_cowd
	done
	((kills)) || not_ok "$1" "the load ended before cowd was killed"
	[[ ${5-} ]] && kill -"$5" "$3"
	ended "$1, $kills times" "$3" "$4"
}

# The first load writes every sector once, in new places all of them; the second writes them again.
killed_under_load() {
	need ctl attach --name disk "$2"
	blockload fill /dev/mapper/disk "$WORK/state" --bytes "$size" >"$WORK/load" 2>&1 &
	killed "$1: cowd killed under first writes" 3 $! "$WORK/load"
	blockload load /dev/mapper/disk "$WORK/state" --seed 7 --sync-every 20 >"$WORK/load" 2>&1 &
	killed "$1: cowd killed under a load" 2 $! "$WORK/load" TERM
	check "$1: no write is lost" blockload verify /dev/mapper/disk "$WORK/state"
}

# one NAME OUR-FORMAT QEMU-FORMAT FILE
one() {
	local name=$1 ours=$2 theirs=$3 file=$4
	check "$name: mounted" mount_partition "$ours:$file" || return
	check "$name: the files are there" fsload tree "$MNT"
	check "$name: a load" fsload run "$MNT" 2 3 120
	fsload tree "$MNT" >"$WORK/tree"
	check "$name: unmounted and detached" unmount_partition
	check "$name: the file is cut" test "$(stat -c %s "$file")" -le $((size + (2 << 20)))
	check "$name: qemu-img finds it sound" sound "$theirs" "$file"
	check "$name: our check too" ctl check "$ours:$file"
	check "$name: attached again" ctl attach --name disk "$ours:$file"
	check "$name: qemu-img reads what the device has" same_contents "$theirs" "$file" /dev/mapper/disk
	need kpartx -a -s /dev/mapper/disk
	check "$name: fsck" e2fsck -fn /dev/mapper/disk1
	need mount -o ro /dev/mapper/disk1 "$MNT"
	fsload tree "$MNT" | cmp - "$WORK/tree" || not_ok "$name: the tree" "is another"
	check "$name: detached" unmount_partition
	check "$name: nothing is left" until_true 10 no_loops
}

faults() { counter disk faults; }

# few_faults NAME SPEC: an image that has everything. A pass is one fault for a run at most,
# and what comes after it none.
few_faults() {
	local name=$1 runs begun read written
	runs=$(ctl map --json "$2" | jq length)
	need ctl attach --name disk "$2"
	begun=$(faults)
	check "$name: a pass of reads" dd if=/dev/mapper/disk of=/dev/null bs=1M iflag=direct status=none
	read=$(faults)
	check "$name: a pass of writes" blockload fill /dev/mapper/disk "$WORK/state" --bytes "$size"
	written=$(faults)
	check "$name: a load" blockload load /dev/mapper/disk "$WORK/state" --seed 5 --ops 200
	check "$name: at most a fault for each run of reads" test $((read - begun)) -le "$runs"
	check "$name: at most a fault for each run of writes" test $((written - read)) -le "$runs"
	check "$name: none after them" test "$(faults)" = "$written"
	echo "# $name: $runs runs, faults $((read - begun)) of reads, $((written - read)) of writes"
	need ctl detach disk
}

# killing NAME OUR-FORMAT QEMU-FORMAT FILE
killing() {
	local sum
	killed_under_load "$1" "$2:$4"
	sum=$(sum_of /dev/mapper/disk)
	check "$1: detached after it" ctl detach disk
	sound_after_kills "$1" "$2" "$3" "$4"
	[[ $(contents "$3" "$4") == "$sum" ]] || not_ok "$1: after the kills" "qemu-img reads something else"
}

# convert WHAT NAME OUR-FORMAT QEMU-FORMAT OPTION...: WHAT is one, or killing too.
convert() {
	local what=$1
	shift
	local name=$1 ours=$2 theirs=$3
	shift 3
	need qemu-img convert -f raw -O "$theirs" "$@" "$IMAGES/disk.raw" "$IMAGES/disk.$ours"
	one "$name" "$ours" "$theirs" "$IMAGES/disk.$ours"
	if [[ $what == killing ]]; then
		killing "$name" "$ours" "$theirs" "$IMAGES/disk.$ours"
		few_faults "$name" "$ours:$IMAGES/disk.$ours"
	fi
	rm "$IMAGES/disk.$ours"
}

# A VHD on a VHD; qemu-img does not know such, so what the device has is what is compared.
differencing() {
	local sum
	need qemu-img convert -f raw -O vpc -o force_size=on "$IMAGES/disk.raw" "$IMAGES/base.vhd"
	check "vhd on a vhd: made" ctl create -o type=differencing -o parent=base.vhd "vhd:$IMAGES/child.vhd"
	check "vhd on a vhd: mounted" mount_partition "vhd:$IMAGES/child.vhd" || return
	check "vhd on a vhd: the files are there" fsload tree "$MNT"
	check "vhd on a vhd: unmounted and detached" unmount_partition
	killed_under_load "vhd on a vhd" "vhd:$IMAGES/child.vhd"
	sum=$(sum_of /dev/mapper/disk)
	check "vhd on a vhd: detached" ctl detach disk
	check "vhd on a vhd: our check" ctl check "vhd:$IMAGES/child.vhd"
	need ctl attach --read-only --name disk "vhd:$IMAGES/child.vhd"
	[[ $(sum_of /dev/mapper/disk) == "$sum" ]] || not_ok "vhd on a vhd" "reads as something else"
	need ctl detach disk
	[[ $(contents vpc "$IMAGES/base.vhd") == "$raw_sum" ]] || not_ok "vhd on a vhd: the parent" "is another"
	rm "$IMAGES/child.vhd" "$IMAGES/base.vhd"
}

# What is not in the overlay is in the base, which stays as it is; others may read that, and
# nobody may write it.
chain() {
	local refused
	need qemu-img create -q -f qcow2 -b disk.raw -F raw "$IMAGES/overlay"
	one "qcow2 over raw" qcow2 qcow2 "$IMAGES/overlay"
	need qemu-img create -q -f qcow2 -b disk.raw -F raw "$IMAGES/second"
	need ctl attach --name disk "qcow2:$IMAGES/overlay"
	check "a second overlay on the same base" ctl attach --name two "qcow2:$IMAGES/second"
	if refused=$(ctl attach --name three "raw:$IMAGES/disk.raw" 2>&1); then
		not_ok "the base is not to be written" "it was attached"
	else
		check "the base is not to be written" grep -q "base of" <<<"$refused"
	fi
	need ctl detach disk
	need ctl detach two
	[[ $(sum_of "$IMAGES/disk.raw") == "$raw_sum" ]] || not_ok "qcow2 over raw: the base" "is another"
	rm "$IMAGES/overlay" "$IMAGES/second"
}

# A chain of three formats: the store names its base itself. qemu-img does not know dscow.
over_dscow() {
	local name="qcow2 over dscow" sum
	need ctl create "dscow:$IMAGES/store:$IMAGES/disk.raw"
	need ctl attach --name disk "dscow:$IMAGES/store:$IMAGES/disk.raw"
	need blockload fill /dev/mapper/disk "$WORK/state" --bytes $((size / 2))
	sum=$(sum_of /dev/mapper/disk)
	need ctl detach disk
	need ctl create -o backing_file=store -o backing_fmt=dscow "qcow2:$IMAGES/overlay" "$size"
	need ctl attach --name disk "qcow2:$IMAGES/overlay"
	[[ $(sum_of /dev/mapper/disk) == "$sum" ]] || not_ok "$name" "reads as something else"
	blockload load /dev/mapper/disk "$WORK/state" --seed 9 --sync-every 20 >"$WORK/load" 2>&1 &
	killed "$name: cowd killed" 3 $! "$WORK/load" TERM
	check "$name: no write is lost" blockload verify /dev/mapper/disk "$WORK/state"
	need ctl detach disk
	need ctl attach --read-only --name disk "dscow:$IMAGES/store:$IMAGES/disk.raw"
	[[ $(sum_of /dev/mapper/disk) == "$sum" ]] || not_ok "$name: the store" "is another"
	need ctl detach disk
	[[ $(sum_of "$IMAGES/disk.raw") == "$raw_sum" ]] || not_ok "$name: the base" "is another"
	rm "$IMAGES/overlay" "$IMAGES/store"
}

# First writes that copy from an image beneath, which is qcow2 as well.
overlay_under_load() {
	local name="qcow2 over qcow2" sum
	need qemu-img create -q -f qcow2 "$IMAGES/first" "$size"
	need ctl attach --name disk "qcow2:$IMAGES/first"
	need blockload fill /dev/mapper/disk "$WORK/state" --bytes "$size"
	need ctl detach disk
	sum=$(sum_of "$IMAGES/first")
	need qemu-img create -q -f qcow2 -b first -F qcow2 "$IMAGES/overlay"
	need ctl attach --name disk "qcow2:$IMAGES/overlay"
	blockload load /dev/mapper/disk "$WORK/state" --seed 9 --sync-every 20 >"$WORK/load" 2>&1 &
	killed "$name: cowd killed" 8 $! "$WORK/load" TERM
	check "$name: no write is lost" blockload verify /dev/mapper/disk "$WORK/state"
	need ctl detach disk
	sound_after_kills "$name" qcow2 qcow2 "$IMAGES/overlay"
	need ctl attach --name disk "qcow2:$IMAGES/overlay"
	check "$name: no write is lost when it is attached again" blockload verify /dev/mapper/disk "$WORK/state"
	need ctl detach disk
	[[ $(sum_of "$IMAGES/first") == "$sum" ]] || not_ok "$name: the base" "is another"
	rm "$IMAGES/overlay" "$IMAGES/first"
}

# refused NAME WORDS BACKING: an image that names what it must not.
refused() {
	local said before
	need qemu-img create -q -f qcow2 "$IMAGES/bad" 16M
	need qemu-img rebase -u -f qcow2 -F raw -b "$3" "$IMAGES/bad"
	before=$(sha256sum <"$IMAGES/bad")
	said=$(ctl attach --name disk "qcow2:$IMAGES/bad" 2>&1) && need ctl detach disk
	check "$1" grep -q "$2" <<<"$said"
	check "$1: the image is as it was" test "$(sha256sum <"$IMAGES/bad")" = "$before"
	rm "$IMAGES/bad"
}

make_disk
convert killing "qcow2" qcow2 qcow2
convert one "qcow2 of version 2, small clusters" qcow2 qcow2 -o compat=0.10,cluster_size=4k
convert one "qcow2, compressed" qcow2 qcow2 -c
chain
over_dscow
overlay_under_load
convert killing "vmdk" vmdk vmdk
convert killing "vmdk in files of 2 GB" vmdk vmdk -o subformat=twoGbMaxExtentSparse
(($(stat -c %s "$IMAGES/disk-s001.vmdk") <= size + (2 << 20))) || not_ok "vmdk in files of 2 GB" "its extent was not cut"
convert killing "vhd" vhd vpc -o force_size=on
differencing
convert killing "qcow" qcow qcow
# What is only read, whatever its length: compressed, and ending anywhere.
need qemu-img convert -f raw -O vmdk -o subformat=streamOptimized "$IMAGES/disk.raw" "$IMAGES/stream.vmdk"
check "streamOptimized vmdk: attached" ctl attach --read-only --name disk "vmdk:$IMAGES/stream.vmdk"
[[ $(sum_of /dev/mapper/disk) == "$raw_sum" ]] || not_ok "streamOptimized vmdk" "reads as something else"
check "streamOptimized vmdk: detached" ctl detach disk
ln -s /etc/shadow "$IMAGES/link"
refused "a backing file is not /etc/shadow" "outside of the folders" /etc/shadow
refused "nor a device" "outside of the folders" /dev/vda
refused "nor above the image" "outside of the folders" ../../etc/shadow
refused "nor behind a link" "symbolic link" link
refused "nor the image itself" "cannot lie on itself" bad
check "nothing is left of what was refused" until_true 10 no_loops
