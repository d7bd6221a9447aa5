#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What lay on a store before it was one is never read by a guest: a store full of poison gets small
# writes, zeroes and discards in new granules, a cowd that is killed, and another attach, and its
# disk holds what was written, and else its base or zeroes.
# Of dscow in each mode, and of qcow2.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

SECTORS=$((40 << 11)) # of the disk; the base is shorter
expected=$WORK/expected
SEED=${COWD_SEED:-$$}
echo "# seed $SEED"

poison() (
	set +o pipefail # of "yes"
	yes POISONED-STORE- | tr -d '\n' | head -c "$(blockdev --getsize64 "$(vol cow)")" |
		dd of="$(vol cow)" bs=1M iflag=fullblock oflag=direct status=none
)

# somewhere LONGEST: `at` and `count`, in sectors
somewhere() {
	at=$(((RANDOM << 15 | RANDOM) % (SECTORS - $1)))
	count=$((1 + RANDOM % $1))
}

# writes COUNT ROUND: the same to the disk and to what is expected of it.
writes() {
	local i
	RANDOM=$((SEED + $2))
	for ((i = 0; i < $1; i++)); do
		somewhere 40
		head -c $((count * 512)) /dev/urandom >"$WORK/data"
		dd if="$WORK/data" of=/dev/mapper/disk bs=512 seek="$at" oflag=direct conv=notrunc status=none &&
			dd if="$WORK/data" of="$expected" bs=512 seek="$at" conv=notrunc status=none || return
	done
	for ((i = 0; i < 5; i++)); do
		somewhere 300
		blkdiscard -z -o $((at * 512)) -l $((count * 512)) /dev/mapper/disk &&
			dd if=/dev/zero of="$expected" bs=512 seek="$at" count="$count" conv=notrunc status=none || return
	done
}

read_disk() { dd if=/dev/mapper/disk bs=1M iflag=direct status=none; }
as_expected() { read_disk | cmp - "$expected"; }
no_poison() {
	local found
	found=$(read_disk | grep -a -c POISON)
	((found == 0)) || {
		echo "the guest reads what was on the store before: $found times"
		return 1
	}
}

# one_disk NAME MODE SPECIFICATION OPTION...
one_disk() {
	local name=$1 mode=$2 spec=$3
	shift 3
	check "poisoned store, $name: the poison" poison || return
	need ctl create --force "$@" "$spec"
	need ctl attach --name disk --durability "$mode" "$spec"
	need cp "$WORK/beneath" "$expected"
	check "poisoned store, $name: nothing written" as_expected
	check "poisoned store, $name: writes" writes 40 1
	check "poisoned store, $name: what was written" as_expected
	end_cowd KILL
	start_cowd
	check "poisoned store, $name: after a kill" as_expected
	check "poisoned store, $name: more writes" writes 40 2
	if [[ $mode != transient ]]; then
		need ctl detach disk
		need ctl attach --name disk --durability "$mode" "$spec"
	fi
	check "poisoned store, $name: in the end" as_expected
	# Afterwards it may hold either.
	if (($(cat "/sys/block/$(basename "$(readlink -f /dev/mapper/disk)")/queue/discard_granularity"))); then
		check "poisoned store, $name: a discard" blkdiscard /dev/mapper/disk
	fi
	check "poisoned store, $name: no poison" no_poison
	need ctl detach disk
}

volumes base=24M cow=64M
start_cowd
need dd if=/dev/urandom of="$(vol base)" bs=1M oflag=direct count=24 status=none
need cp "$(vol base)" "$WORK/beneath"
need truncate -s $((SECTORS * 512)) "$WORK/beneath"
while read -r granule mode; do
	one_disk "dscow $granule, $mode" "$mode" "dscow:$(vol cow):$(vol base)" \
		-o "granule=$granule" -o "size=$((SECTORS * 512))" </dev/null
done <<<$'4K flush\n4K transient\n64K always'
need truncate -s 0 "$WORK/beneath"
need truncate -s $((SECTORS * 512)) "$WORK/beneath"
one_disk "qcow2, flush" flush "qcow2:$(vol cow)" -o "size=$((SECTORS * 512))"
