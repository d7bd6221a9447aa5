#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stores and bases that cowd and cowctl must refuse, each with a sentence, and leave no
# trace of: no device, no loop, no file kept open, no note.  (tests/kernel/cowd-refused.sh
# has what is refused because of what is attached already.)

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes base=32M cow=48M small=16M other=32M
dd if=/dev/urandom of="$(vol base)" bs=1M count=32 oflag=direct status=none
dd if=/dev/urandom of="$(vol other)" bs=1M count=32 oflag=direct status=none
start_cowd
cow=$(vol cow) base=$(vol base)

# What a refusal must not leave: devices, loops, open files of cowd beyond its sockets
# and pipes, notes.
traces() {
	dmsetup ls --target userspace
	losetup -n -O NAME
	find "/proc/$cowd_pid/fd" -lname '/dev/*' -printf '%l\n' | grep -E "^/dev/(dm-|mapper|loop|$VG|vd)" | sort
	ls "$RUN/devices.d"
}

# refused NAME WORDS COMMAND...: it fails, says WORDS, and leaves nothing behind.
refused() {
	local name=$1 words=$2 said before
	shift 2
	before=$(traces)
	if said=$("$@" 2>&1); then
		not_ok "$name" "it was not refused: $said"
	elif [[ $said != *"$words"* ]]; then
		not_ok "$name" "it should say '$words' and said: $said"
	elif [[ $(traces) != "$before" ]]; then
		not_ok "$name" "left behind: $(diff <(echo "$before") <(traces) | tr '\n' ' ')"
	else
		ok "$name"
	fi
}

attach() { timeout 60 cowctl --socket "$RUN/control.sock" attach --name disk "$@"; }
attach_disk() { attach "dscow:$cow:$base"; }

refused "a store on a device that is too small" "is too small" ctl create "dscow:$(vol small):$base"
refused "a granule that is none" "granule" ctl create -o granule=5000 "dscow:$cow:$base"
refused "an option that is none" "nonsense" ctl create -o nonsense=1 "dscow:$cow:$base"
refused "garbage for a store" "dscow" attach "dscow:$(vol other):$base"

need ctl create "dscow:$cow:$base"
refused "a second create over a store" "--force" ctl create "dscow:$cow:$base"
refused "another base" "is not the base" attach "dscow:$cow:$(vol other)"
refused "a base that shrank" "is too small to be the base" attach "dscow:$cow:$(vol small)"
refused "a store that is its own base" "same" attach "dscow:$cow:$cow"

# Damage to what is on disk; the first 2 MiB are saved and put back.
dd if="$cow" of="$WORK/head" bs=1M count=2 status=none
restore() { dd if="$WORK/head" of="$cow" bs=1M conv=notrunc,fsync status=none; }
dd if=/dev/urandom of="$cow" bs=8192 count=1 conv=notrunc,fsync status=none
refused "both headers garbage" "dscow" attach_disk
restore
dd if=/dev/urandom of="$cow" bs=4096 count=1 conv=notrunc,fsync status=none
check "one header garbage: the other serves" attach_disk
need ctl detach disk
restore

# A truncated copy of the store.
dd if="$cow" of="$WORK/short" bs=1M count=16 status=none
refused "a truncated store" "is too small" attach "dscow:$WORK/short:$base"

# A base that changed where samples are taken.
dd if="$base" of="$WORK/block" bs=4096 count=1 status=none
dd if=/dev/zero of="$base" bs=4096 count=1 conv=notrunc,fsync status=none
refused "a base that changed" "has been changed since" attach_disk
dd if="$WORK/block" of="$base" bs=4096 conv=notrunc,fsync status=none
