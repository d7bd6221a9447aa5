#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowd is killed and started again under a verified load while hardly any memory is free: it
# comes up, the load sees no error, no write is lost. Granules are copied meanwhile.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
leave=$((24 << 10))	# KiB
volumes base=192M cow=224M
need blockload fill "$(vol base)" "$WORK/state" --bytes $((192 << 20))
start_cowd
new_store cow base disk flush 64K

free_kib() { awk '/^MemFree:/ { print $2 }' /proc/meminfo; }
writes() { awk '{ print $5 }' "/sys/block/$(basename "$(readlink -f /dev/mapper/disk)")/stat"; }
has_written() { (($(writes) >= $1)); }
is_short() { (($(free_kib) < leave + (16 << 10))); }

# Most of it goes into a pool of huge pages, which nobody has to clear: in an emulated machine
# that would take minutes. The hog has the rest.
reserve=$(</proc/sys/vm/min_free_kbytes) hog=
give_back() {
	local status=$?
	[[ ! $hog ]] || kill -KILL "$hog" 2>/dev/null
	hog=
	echo 0 >/proc/sys/vm/nr_hugepages
	echo "$reserve" >/proc/sys/vm/min_free_kbytes
	return "$status"
}
trap 'give_back; clean_up' EXIT
# Otherwise the kernel keeps more than we leave. It may kill the hog, as it should, and it
# prints a trace of that.
echo 4096 >/proc/sys/vm/min_free_kbytes
"$TOP/tests/lab/kernel-log" expect 'Call Trace:'
echo $((($(free_kib) - (128 << 10)) / 2048)) >/proc/sys/vm/nr_hugepages
exec {hog_says}< <(exec hog "$leave")
hog=$!
read -r -t 150 said <&"$hog_says"
[[ ${said-} == full ]] || not_ok "memory: it is short" "$(free_kib) KiB are free"
echo "# $(</proc/sys/vm/nr_hugepages) huge pages, $(free_kib) KiB are free"

blockload load /dev/mapper/disk "$WORK/state" --seed 7 --sync-every 12 >"$WORK/load" 2>&1 &
load=$!
for round in 1 2 3; do
	check "memory: round $round, the load goes on" until_true 60 has_written $(($(writes) + 50))
	# The hog may have been killed: then it eats again.
	check "memory: round $round, it is short when cowd is killed" until_true 100 is_short
	end_cowd KILL
	check "memory: round $round, and while there is none" until_true 100 is_short
	began=$EPOCHREALTIME
	start_cowd
	ok "memory: round $round, another cowd starts"
	echo "# round $round: started after $(((${EPOCHREALTIME/./} - ${began/./}) / 1000)) ms, $(free_kib) KiB are free"
	check "memory: round $round, it serves" \
		dd if=/dev/mapper/disk of=/dev/null bs=64k count=32 iflag=direct status=none
done
kill -TERM "$load" 2>/dev/null
ended "memory: the load saw no error" "$load" "$WORK/load"
check "memory: it was short to the end" kill -0 "$hog"
give_back
[[ $(counter disk errors) == 0 ]] || not_ok "memory: the kernel counts no error" "$(counter disk errors)"
check "memory: no write is lost" blockload verify /dev/mapper/disk "$WORK/state"
reattach cow base disk flush
check "memory: no write is lost after detach and attach" blockload verify /dev/mapper/disk "$WORK/state"
need ctl detach disk
check "memory: the store has no error" ctl check "dscow:$(vol cow):$(vol base)"
