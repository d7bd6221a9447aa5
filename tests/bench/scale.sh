#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# scale.sh MOST: 1, 10, 100, 1000 devices of one cowd, as many as MOST allows: memory, threads,
# files, attach time, CPU when nobody does anything; and a boot storm, 50 devices on one base
# that all ask at once.

# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"

INSTRUMENT=wall
ROUND=1
MOST=$1
SIZE=1024
STORM=50
IDLE_SECONDS=20

# Stores that hold nothing take no memory; a disk in memory takes none for them either.
make_volumes() {
	local i table='' mib=$((SIZE + 8))
	make_ram $((SIZE + MOST * mib))
	linear base "$MEMORY" 0 "$SIZE"
	# A thousand pairs of cookie and udev would take minutes.
	need udevadm control --stop-exec-queue
	for ((i = 1; i <= MOST; i++)); do
		table+="cow$i,,,rw,0 $(sectors "$mib") linear $MEMORY $(sectors $((SIZE + (i - 1) * mib)));"
	done
	need dmsetup create --noudevsync --concise "${table%;}"
	need udevadm control --start-exec-queue
	need udevadm settle --timeout=600
	need dmsetup mknodes
}

of_status() { awk -v key="$1:" '$1 == key { print $2 }' "/proc/$cowd_pid/status"; }
available_kib() { awk '/^MemAvailable:/ { print $2 }' /proc/meminfo; }
spec() { echo "dscow:/dev/mapper/cow$1:/dev/mapper/base"; }

# attach I: and how long it took, in microseconds
attach() {
	local began
	need ctl create --force "$(spec "$1")"
	need udevadm settle
	began=$EPOCHREALTIME
	need ctl attach --name "disk$1" "$(spec "$1")"
	times[$1]=$((${EPOCHREALTIME/./} - ${began/./}))
}

median() { printf '%s\n' "$@" | sort -n | awk '{ t[NR] = $1 } END { print t[int((NR + 1) / 2)] }'; }

# What N devices take beside an idle cowd.
look() {
	local n=$1 before first=$(($1 > 10 ? $1 - 9 : 1))
	need udevadm settle
	record "devices-$n-memory" MiB $(((available - $(available_kib)) / 1024))
	record "devices-$n-cowd" MiB $(($(of_status VmRSS) / 1024))
	record "devices-$n-threads" threads "$(of_status Threads)"
	record "devices-$n-files" files "$(find "/proc/$cowd_pid/fd" -mindepth 1 | wc -l)"
	# The last ten, so that no single one counts.
	record "devices-$n-attach" ms "$(($(median "${times[@]:first}") / 1000))"
	before=$(cowd_ns)
	# What is measured is this time.
	sleep "$IDLE_SECONDS"
	record "devices-$n-idle-cpu" % "$(awk -v ns=$(($(cowd_ns) - before)) -v s="$IDLE_SECONDS" \
		'BEGIN { printf "%.3f", ns / s / 1e7 }')"
}

# storm N: each reads and writes in every leaf of its own, all at once.
storm() {
	local i jobs=()
	for ((i = 1; i <= $1; i++)); do
		jobs+=(--name="guest$i" --filename="/dev/mapper/disk$i")
	done
	run_fio --ioengine=libaio --iodepth=4 --direct=1 --rw=randrw --rwmixread=80 --bs=4k \
		--size="${SIZE}M" --io_size=1M --fsync=64 --group_reporting "${jobs[@]}"
	record "boot-storm-$1" ms "$(fio_ms)"
	record "boot-storm-$1-p99-read" ms "$(jq '.jobs[0].read.clat_ns.percentile."99.000000" / 1e6' "$WORK/fio.json")"
}

need modprobe -a dm-userspace
make_volumes
start_cowd
SUBJECT=cowd
times=()
attached_so_far=0
available=$(available_kib)
for n in 1 10 100 1000; do
	((n <= MOST)) || break
	for ((i = attached_so_far + 1; i <= n; i++)); do
		attach "$i"
	done
	attached_so_far=$n
	look "$n"
	((n != 100)) || storm "$STORM"
done
if ((MOST >= 1000)); then
	# The very first one loads the plugin.
	record attach-1000th-to-first ratio "$(awk -v a="$(median "${times[@]: -10}")" -v b="$(median "${times[@]:1:10}")" \
		'BEGIN { printf "%.3f", a / b }')"
fi
for ((i = 1; i <= attached_so_far; i++)); do
	need until_true 20 ctl detach "disk$i"
done
SUBJECT=
