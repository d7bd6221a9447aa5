#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What a user asks of cowd: attach, list, info, map, stats, pause, resume, detach, events.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
volumes base=64M cow=80M cow2=80M
need mkfs.ext4 -q "$(vol base)"
before=$(sum_of "$(vol base)")
start_cowd

# says NAME WORDS COMMAND...: it works and prints WORDS.
says() {
	local name=$1 words=$2 said
	shift 2
	if said=$("$@" 2>&1) && grep -qF -- "$words" <<<"$said"; then
		ok "$name"
	else
		not_ok "$name" "$(tail -n 3 <<<"$said" | tr '\n' ' ')"
	fi
}

# refuses NAME WORDS COMMAND...: it fails, with WORDS and the id of the failure.
refuses() {
	local name=$1 words=$2 said
	shift 2
	if said=$("$@" 2>&1); then
		not_ok "$name" "it was not refused: $said"
	elif ! grep -qF -- "$words" <<<"$said"; then
		not_ok "$name" "$(tail -n 3 <<<"$said" | tr '\n' ' ')"
	elif ! grep -qE 'e-[0-9a-f]{8}' <<<"$said"; then
		not_ok "$name" "no id in: $said"
	else
		ok "$name"
	fi
}

store="dscow:$(vol cow):$(vol base)"
need ctl create --force "$store"
check "attach" ctl attach "$store"
name=dmu-$VG-cow
device=/dev/mapper/$name
check "the name comes from the store" test -b "$device"
says "list has it" "$name" ctl list
says "it is active" '"active"' ctl --json info "$name"
says "a device is found by its path" '"dscow"' ctl --json info "$device"
says "and by its specification" '"dscow"' ctl --json info "$store"
check "map" ctl --json map "$name"
says "stats of kernel, session and image" '"session"' ctl --json stats "$name"
refuses "an unknown device" "serves no device nothing" ctl detach nothing

need mount "$device" "$MNT"
need cp -r /etc "$MNT/etc"
need sync -f "$MNT"
refuses "detach while mounted" "has it open" ctl detach "$name"
check "it still works after that" cp -r "$MNT/etc" "$MNT/etc2"

check "pause" ctl pause "$name"
says "it is paused" '"paused"' ctl --json info "$name"
cp "$MNT/etc/passwd" "$MNT/late" &&
	sync -f "$MNT" &
writer=$!
check "resume" ctl resume "$name"
check "what waited was written" wait "$writer"
refuses "resume of what is not paused" "not paused" ctl resume "$name"
need umount "$MNT"

check "detach" ctl detach "$name"
check "the device is gone" test ! -e "$device"
check "the note is gone" test ! -e "$RUN/devices.d/$name.json"
check "the store is clean" ctl check "$store"
check "the base did not change" test "$(sum_of "$(vol base)")" = "$before"

check "attach by a name of one's own" ctl attach --name again --durability always "$store"
need mount /dev/mapper/again "$MNT"
check "all is there" diff -r --no-dereference "$MNT/etc" "$MNT/etc2"
need umount "$MNT"
refuses "a name that is taken" "There is a device again already" \
	ctl attach --name again "raw:$(vol cow2)"
refuses "a name of somebody else's" "already" ctl attach --name "$VG-base" "raw:$(vol cow2)"
check "a second device" ctl attach "raw:$(vol cow2)"
check "it takes writes" dd if=/dev/urandom "of=/dev/mapper/dmu-$VG-cow2" bs=1M count=8 \
	oflag=direct status=none
check "and is detached" ctl detach "dmu-$VG-cow2"
check "the first one too" ctl detach again
says "events tell of it" '"detached"' ctl --json events
