#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# loop.sh [ROUNDS [SEED]]: guests with transient disks of one golden image, two at a
# time, with cowd killed at some moment of their lives; nothing may be left of any, and
# what others have on the host stays as it was.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

KIB=65536
ROUNDS=${1:-10}
SEED=${2:-$RANDOM}
RANDOM=$SEED
LIFE=16000 # ms, of a guest from xl create on
tear_down() {
	systemctl stop cowd.socket cowd
	dmsetup remove theirs
	losetup -D
	rm -f /tmp/theirs
}

volumes golden=64M theirs=8M
need guestdisk write /dev/vg/golden 4 0 "$KIB"
sum=$(sum_of /dev/vg/golden)

# What is not ours.
host_tags=(--addtag cowd.transient --addtag cowd.host=other --addtag cowd.store=12345678-1234-1234-1234-123456789abd)
need lvm_on lvcreate -qq -y -W n -L 8M -n cowd-theirs "${host_tags[@]}" --addtag cowd.boot=another vg
need dmsetup create theirs --table "0 16384 linear /dev/vg/theirs 0"
need truncate -s 8M /tmp/theirs
need losetup -f /tmp/theirs
need systemctl start cowd.socket cowd

# life NAME: a guest that finds the golden image, writes, reads what it wrote, ends.
life() {
	mark "$1"
	xl_create "$1" "$TOP/xl-config-examples/transient.cfg" \
		"steps=verify:xvda:4:0:$KIB;scatter:xvda:$2:50:$KIB;scattered:xvda:$2:50:$KIB;poweroff" || return
	await "$1" "guest: not ok|guest: ok poweroff" 60 || {
		echo "$WHY"
		return 1
	}
	[[ $LINE != *"not ok"* ]] || {
		echo "$LINE"
		return 1
	}
}

# over NAME: xl may be through with it before we look.
over() {
	local domid
	domid=$(xl domid "$1" 2>/dev/null) || return 0
	until_gone "$domid" 30
}

# lived CASE PID NAME: a case.
lived() {
	if wait "$2"; then ok "$1"; else not_ok "$1" "$(last_words 6 <"$WORK/$3")"; fi
	over "$3" || not_ok "$1: it is gone" "$(xl list 2>&1 | last_words)"
}

before=$(leftovers)
echo "# seed $SEED"
for ((round = 1; round <= ROUNDS; round++)); do
	began=$EPOCHREALTIME
	moment=$((RANDOM % LIFE))
	life a $((2 * round - 1)) >"$WORK/a" 2>&1 &
	one=$!
	life b $((2 * round)) >"$WORK/b" 2>&1 &
	two=$!
	(
		sleep "$((moment / 1000)).$(printf %03d $((moment % 1000)))"
		systemctl kill -s KILL cowd
	) &
	killer=$!
	lived "guest a of round $round, cowd killed after $moment ms" "$one" a
	lived "guest b of round $round" "$two" b
	wait "$killer"
	same_leftovers "nothing is left of round $round" "$before" "cowd's threads"
	echo "# round $round: $(since "$began") ms"
done
check "cowd's threads are no more than they may be" test \
	"$(find "/proc/$(cowd_pid)/task" -mindepth 1 -maxdepth 1 | wc -l)" -le 16
check "the golden image is as it was" test "$(sum_of /dev/vg/golden)" = "$sum"
