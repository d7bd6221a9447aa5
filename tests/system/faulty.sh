#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Disks that fail for some seconds, or in single sectors, and are good again: dm-flakey and the
# error target under the base, the store, and both. Whoever asked gets an error, never wrong data,
# and nothing hangs; afterwards all goes on, and all that was written is there. In all modes of
# dscow, and on qcow2 over a file. A store that drops writes is the control: that is found.
# COWD_BAD_SECONDS: how long each trouble lasts; COWD_ALL: every mode over every disk that fails,
# not only the three that are most different.

# shellcheck source=tests/system/lib.sh
# shellcheck disable=SC2016 # what eval is given
. "$(dirname "$0")/lib.sh"

BAD=${COWD_BAD_SECONDS:-2}
ALL=${COWD_ALL-}
SIZE=$((48 << 20))
LONGEST=20000 # ms that one read or write may take, beside the seconds of trouble
base=/dev/mapper/faulty-base store=/dev/mapper/faulty-store
sectors() { blockdev --getsz "$(vol "$1")"; }

# swap DISK, its new table on standard input
swap() { dmsetup suspend --nolockfs "faulty-$1" && dmsetup load "faulty-$1" && dmsetup resume "faulty-$1"; }
each() { # what DISK...
	local disk
	for disk in "${@:2}"; do need "$1" "$disk"; done
}
good() { echo "0 $(sectors "$1") linear $(vol "$1") 0" | swap "$1"; }
bad() { echo "0 $(sectors "$1") error" | swap "$1"; }
flaky() { echo "0 $(sectors "$1") flakey $(vol "$1") 0 1 1" | swap "$1"; }
drops_writes() { echo "0 $(sectors "$1") flakey $(vol "$1") 0 0 3600 1 drop_writes" | swap "$1"; }
# Every 999th group of 8 sectors fails, and the one at sector 24, where dscow has its first bits.
holes() {
	local all at last=0
	all=$(sectors "$1")
	{
		for ((at = 24; at + 8 < all; at += 7992)); do
			((at == last)) || echo "$last $((at - last)) linear $(vol "$1") $last"
			echo "$at 8 error"
			last=$((at + 8))
		done
		echo "$last $((all - last)) linear $(vol "$1") $last"
	} | swap "$1"
}
remove_disks() { dmsetup remove --retry faulty-base && dmsetup remove --retry faulty-store; }
put_down() {
	local status=$?
	exec 2>/dev/null
	still "${load-}" && kill -KILL "$load"
	good base
	good store
	findmnt -rno TARGET | grep "^$WORK" | tac | xargs -r umount
	[[ $cowd_pid ]] && unused_devices && end_cowd TERM
	unused_devices
	remove_disks
	(exit "$status")
	clean_up
} >/dev/null

session() { ctl --json stats disk 2>/dev/null | jq ".devices[0].session.$1"; }
image() { ctl --json stats disk 2>/dev/null | jq ".devices[0].image.$1"; }
state() { ctl --json info disk | jq -r .state; }
is_active() { [[ $(state) == active ]]; }
more() { (($(session "$1") > $2)); }
still() { kill -0 "$1" 2>/dev/null; }
sentence() { ctl --json events | jq -r "select(.type == \"$1\") | .message" | tail -n 1; }
traces() {
	dmsetup ls --target userspace
	ls "$RUN/devices.d"
	# A loop device goes a moment after its last user.
	until_true 10 eval '[[ -z $(losetup -a) ]]' || losetup -a
}
# Leaks, status 3, are no errors: what was given when a write failed is lost room.
sound() {
	local status
	ctl check "$1"
	status=$?
	((status == 0 || status == 3))
}
resident() { awk '/^VmRSS:/ { print $2 }' "/proc/$cowd_pid/status"; }
files() { find "/proc/$cowd_pid/fd" | wc -l; }

# trouble NAME KIND DISK...: for BAD seconds, under the load; if the store has it, until a commit has failed.
# That is told of dscow with "flush" alone: with "always" a write's data fails first, and soon all of the
# larger clusters of a qcow2 are its own, and then there is nothing to commit.
trouble() {
	local name=$1 kind=$2 failures commits commits_all_along=
	[[ $mode != flush || $spec != dscow:* ]] || commits_all_along=yes
	shift 2
	failures=$(session commit_failures)
	each "$kind" "$@"
	sleep "$BAD"
	if [[ $* == *store* && $commits_all_along ]]; then
		check "$name: $kind, a commit failed" until_true 30 more commit_failures "$failures"
		check "$name: $kind, which is an event" grep -q "could not be made durable" <<<"$(sentence commit-failed)"
	fi
	commits=$(session commits)
	each good "$@"
	[[ ! $commits_all_along ]] ||
		check "$name: $kind, commits again" until_true 60 more commits "$commits"
	check "$name: $kind, the load goes on" still "$load"
}

# a_kill NAME DISK...: cowd is killed while they are bad, and the next one finds them so.
a_kill() {
	local name=$1
	shift
	each bad "$@"
	end_cowd KILL
	start_cowd
	check "$name: killed, the load waits" still "$load"
	if [[ $* == *store* ]]; then
		check "$name: killed, told that it cannot be taken up" until_true 30 eval '[[ $(sentence reattach-failed) ]]'
		echo "# $(sentence reattach-failed)"
	fi
	each good "$@"
	check "$name: killed, and served again" until_true 90 is_active
}

# one_case NAME MODE SPECIFICATION DISK...
one_case() {
	local name=$1 mode=$2 spec=$3 slowest
	shift 3
	cp "$WORK/base" "$WORK/state"
	need ctl attach --name disk --durability "$mode" "$spec"
	blockload load /dev/mapper/disk "$WORK/state" --seed 11 --sync-every 8 --errors 1 >"$WORK/load" 2>&1 &
	load=$!
	trouble "$name" flaky "$@"
	trouble "$name" bad "$@"
	trouble "$name" holes "$@"
	[[ $mode == transient ]] || a_kill "$name" "$@"
	[[ $* == *store* || $(session commit_failures) == 0 ]] ||
		not_ok "$name: commits do not need the base" "$(session commit_failures) failed"
	kill -TERM "$load"
	ended "$name: never wrong data" "$load" "$WORK/load"
	slowest=$(sed -n 's/.*slowest took \([0-9]*\) ms.*/\1/p' "$WORK/load")
	echo "# figure: $name: $(<"$WORK/load")"
	check "$name: nothing hung" test "${slowest:-$LONGEST}" -lt $((LONGEST + BAD * 1000))
	check "$name: the load has seen errors" eval '! grep -q ", 0 writes, 0 reads and 0 syncs failed" "$WORK/load"'
	check "$name: all that was written is there" blockload verify /dev/mapper/disk "$WORK/state"
	check "$name: detached" ctl detach disk || return
	[[ $mode == transient ]] && return
	check "$name: no error in the store" sound "$spec"
	need ctl attach --name disk --durability "$mode" "$spec"
	check "$name: all is there after detach and attach" blockload verify /dev/mapper/disk "$WORK/state"
	need ctl detach disk
}

fresh_dscow() { need ctl create --force -o granule=4K -o size="$SIZE" "$spec"; }
fresh_qcow2() { need qemu-img create -q -f qcow2 -b "$WORK/images/base" -F raw "$store"; }

# refused NAME WORD...: what cowctl is asked to do, in a sentence, and soon.
refused() {
	local name=$1 said
	shift
	if said=$(timeout 60 cowctl --socket "$RUN/control.sock" "$@" 2>&1); then
		not_ok "$name" "it was not refused: $said"
	elif (($? == 124)) || [[ $said != *.* ]]; then
		not_ok "$name" "it did not say why: $said"
	else
		ok "$name"
		echo "# $said"
	fi
}

modprobe dm-flakey || exit
volumes base=64M store=64M
for disk in base store; do
	need dmsetup create "faulty-$disk" --table "0 $(sectors $disk) linear $(vol $disk) 0"
done
trap put_down EXIT
mkdir "$WORK/images"
printf '[paths]\nreference_roots = ["%s"]\n' "$WORK/images" >"$WORK/cowd.toml"
cowd_command+=(--config "$WORK/cowd.toml")
start_cowd

# --- dscow ---

need blockload fill "$base" "$WORK/base" --bytes "$SIZE"
spec=dscow:$store:$base
fresh_dscow
one_case "faulty base and store, flush" flush "$spec" base store
at_first=$(resident) files_at_first=$(files)
for mode in ${ALL:+flush always transient}; do
	for disk in base store; do
		fresh_dscow
		one_case "faulty $disk, $mode" "$mode" "$spec" "$disk"
	done
done
for mode in ${ALL:+always} transient; do
	fresh_dscow
	one_case "faulty base and store, $mode" "$mode" "$spec" base store
done

# --- attach and detach while the disk is bad ---

fresh_dscow
before=$(traces)
for disk in store base; do
	each bad "$disk"
	refused "attach over a bad $disk" attach --name disk "$spec"
	check "attach over a bad $disk: nothing is left" test "$(traces)" = "$before"
	each good "$disk"
	check "attach when the $disk is good again" ctl attach --name disk "$spec"
	check "and detach" ctl detach disk
done
need ctl attach --name disk "$spec"
need blockload fill /dev/mapper/disk "$WORK/state" --bytes "$SIZE"
each bad store
refused "detach over a bad store" detach disk
each good store
# What is left of it to do is done by whoever needs the store next.
if dmsetup info disk >/dev/null 2>&1; then need ctl detach disk; fi
check "attach after that" ctl attach --name disk "$spec"
check "and all is there" blockload verify /dev/mapper/disk "$WORK/state"
check "detach" ctl detach disk
check "no error in the store" ctl check "$spec"

# --- the control ---

need ctl attach --name disk "$spec"
each drops_writes store
need blockload fill /dev/mapper/disk "$WORK/state" --bytes "$SIZE" --seed 2
check "a store that drops writes is found out" eval '! blockload verify /dev/mapper/disk "$WORK/state"'
each good store
ctl detach disk >/dev/null 2>&1
unused_devices

# --- qcow2 over a file ---

need wipefs -qa "$base"
need mkfs.ext4 -q -m 0 "$base"
need mount "$base" "$WORK/images"
need truncate -s "$SIZE" "$WORK/images/base"
need blockload fill "$WORK/images/base" "$WORK/base" --bytes "$SIZE"
need umount "$WORK/images"
need mount -o ro,noload "$base" "$WORK/images"
# It may have mounts of its own.
end_cowd TERM
start_cowd
spec=qcow2:$store
for mode in ${ALL:+flush} always; do
	fresh_qcow2
	one_case "qcow2, faulty base and store, $mode" "$mode" "$spec" base store
done
if [[ $ALL ]]; then
	fresh_qcow2
	one_case "qcow2, faulty base, flush" flush "$spec" base
fi

# --- what is left ---

echo "# figure: resident memory after the first case $at_first KiB, after the last $(resident) KiB"
check "nothing is left" test "$(traces)" = "$before"
check "nor files open" test "$(files)" -le "$files_at_first"
end_cowd TERM
need umount "$WORK/images"
check "nor devices" remove_disks
