#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What cowd refuses, with a sentence, and that nothing is left of it: two cowd at once, in one
# run directory or over one store, one store twice, garbage images, a full or read-only run directory.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
volumes base=32M cow=64M cow2=64M
mkdir -p "$RUN"
need modprobe loop
need mount -t tmpfs -o size=256k cowd-run "$RUN"
start_cowd
store="dscow:$(vol cow):$(vol base)"
need ctl create --force "$store"
need ctl create --force "dscow:$(vol cow2):$(vol base)"

# refused NAME WORDS COMMAND...: with WORDS; afterwards the devices are those of before.
refused() {
	local name=$1 words=$2 said devices
	shift 2
	devices=$(dmsetup ls --target userspace | sort)$(ls "$RUN/devices.d")$(losetup -a)
	if said=$("$@" 2>&1); then
		not_ok "$name" "it was not refused: $said"
	elif ! grep -qiF -- "$words" <<<"$said"; then
		not_ok "$name" "$(tail -n 3 <<<"$said" | tr '\n' ' ')"
	elif [[ $(dmsetup ls --target userspace | sort)$(ls "$RUN/devices.d")$(losetup -a) != "$devices" ]]; then
		not_ok "$name" "something was left behind"
	else
		ok "$name"
	fi
}

refused "a second cowd" "Another cowd (process $cowd_pid)" timeout 20 "${cowd_command[@]}"

need ctl attach --name one "$store"
refused "a store that is attached" "store of one" ctl attach --name two "$store"
refused "the same by another path" "store of one" \
	ctl attach --name two "dscow:/dev/mapper/$VG-cow:$(vol base)"
refused "a base that is somebody's store" "store of one" \
	ctl attach --name two "dscow:$(vol cow2):$(vol cow)"
refused "a store that is somebody's base" "base of one" ctl attach --name two "raw:$(vol base)"
check "a base may be shared" ctl attach --name two "dscow:$(vol cow2):$(vol base)"
need ctl detach two

# A cowd with a directory of its own knows nothing of the first one's devices: the claims of
# the kernel, and the owner in the store, keep them apart.
need truncate -s 48M "$WORK/store"
in_file="dscow:$WORK/store:$(vol base)"
need ctl create --force "$in_file"
need ctl attach --name in-file "$in_file"
first_run=$RUN first_cowd=$cowd_pid first_command=("${cowd_command[@]}")
first() { RUN=$first_run ctl "$@"; }
RUN=$WORK/another-run
cowd_command=(cowd --foreground --run-dir "$RUN" --plugin-dir "$TOP/build/plugins")
start_cowd
refused "another cowd: the store of the first one's device" "is in use" ctl attach --name two "$store"
refused "another cowd: the same as a raw disk" "is in use" ctl attach --name two "raw:$(vol cow)"
refused "another cowd: its base, to be written" "is in use" ctl attach --name two "raw:$(vol base)"
refused "another cowd: its store in a file" "already behind the loop device" ctl attach --name two "$in_file"
refused "another cowd: its device's name" "a device one already" ctl attach --name one "dscow:$(vol cow2):$(vol base)"
refused "another cowd: to detach its device" "no device one" ctl detach one
check "another cowd: a base may be shared" ctl attach --name two "dscow:$(vol cow2):$(vol base)"
refused "the first cowd: the store of the other one's" "is in use" \
	first attach --name three "dscow:$(vol cow2):$(vol base)"
need ctl detach two
check "another cowd: the first one serves on" dd if=/dev/mapper/one of=/dev/null bs=1M iflag=direct status=none
need first detach one
need first detach in-file
check "another cowd: a store that the first let go" ctl attach --name one "$store"
need ctl detach one
check "another cowd: the store is clean" ctl check "$store"
end_cowd TERM
RUN=$first_run cowd_pid=$first_cowd cowd_command=("${first_command[@]}")

refused "a store that is not there" "/dev/$VG/none" ctl attach "dscow:/dev/$VG/none:$(vol base)"
need qemu-img create -q -f qcow "$WORK/odd" 197120
need truncate -s 1M "$WORK/odd"
loop=$(losetup -b 4096 -f --show "$WORK/odd")
refused "a disk that ends within a block" "385 sectors" ctl attach --name odd "qcow:$loop"
need losetup -d "$loop"
refused "a format that is not there" "nothing" ctl attach "nothing:$(vol cow)"
refused "a specification that is none" "spec" ctl attach "::"
refused "a base that is missing" "base" ctl attach "dscow:$(vol cow)"
dd if=/dev/urandom of="$(vol cow2)" bs=1M count=4 oflag=direct status=none
refused "garbage" "/dev/$VG/cow2" ctl attach "dscow:$(vol cow2):$(vol base)"
dd if=/dev/zero of="$WORK/short" bs=512 count=3 status=none
refused "a file with nothing in it" "short" ctl attach "dscow:$WORK/short:$(vol base)"
refused "a directory" "$WORK" ctl attach "raw:$WORK"

dd if=/dev/zero of="$RUN/filler" bs=4k status=none 2>/dev/null
refused "a full run directory" "note of one" ctl attach --name one "$store"
rm "$RUN/filler"
check "with room it works" ctl attach --name one "$store"
need ctl detach one
need mount -o remount,ro "$RUN"
refused "a read-only run directory" "note of one" ctl attach --name one "$store"
need mount -o remount,rw "$RUN"
check "writable again it works" ctl attach --name one "$store"
need ctl detach one
check "the store is clean after all that" ctl check "$store"
end_cowd TERM
umount "$RUN"
