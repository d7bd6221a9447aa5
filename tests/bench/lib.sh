# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What the benchmark's scripts share in the machine: the subjects, made and taken down,
# and the line of JSON that each measurement becomes in $ROUNDS_FILE.
#
# Below every subject lie the same two regions of one disk, as plain linear devices:
#
#   base   what copy-on-write disks are laid over
#   cow    their stores; the first part of it is `lv`, on which the plain devices are
#
# A subject is measured as $DEV.  `fresh SUBJECT` makes it with nothing written yet,
# `drop` takes it down.

# shellcheck source=tests/system/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../system/lib.sh"

# Nothing that is measured may go through the machine's shared folders.
LOG=$WORK/cowd.log
ROUNDS_FILE=$WORK/rounds
INSTRUMENT=icount
ROUND=0
DEV='' SUBJECT='' MEMORY=''
touch "$ROUNDS_FILE"

keep_results() {
	local status=$?
	[[ ! ${LAB_RESULTS-} ]] || cp "$LOG" "$ROUNDS_FILE" "$LAB_RESULTS/" 2>/dev/null
	(exit "$status")
	clean_up
}
trap keep_results EXIT

sectors() { echo $(($1 * 2048)); }

# udev watches block devices for being closed by who wrote to them, some sooner than others: each
# read and write of a file that is watched costs 100 instructions.
no_watches() {
	mkdir -p /run/udev/rules.d
	echo 'KERNEL=="dm-*|nullb*", OPTIONS="nowatch"' >/run/udev/rules.d/99-no-watches.rules
	need udevadm control --reload
}

# make_ram MIB: a disk in the machine's memory with a volatile write cache, for one without gets
# no FLUSH to see.  The cache is as small as it can be: each write then moves one block into it
# and one out of it, whatever was written before, and a FLUSH never finds much.
make_ram() {
	# Since Linux 5.19 the device has the folder's name, before that a number.
	local disk=/sys/kernel/config/nullb/nullb0
	no_watches
	need modprobe null_blk nr_devices=0
	mountpoint -q /sys/kernel/config || need mount -t configfs configfs /sys/kernel/config
	need mkdir "$disk"
	echo "$1" >"$disk/size"
	echo 1 >"$disk/memory_backed"
	echo 1 >"$disk/cache_size"
	echo 1 >"$disk/submit_queues"
	echo 1 >"$disk/power"
	# shellcheck disable=SC2034 # for the scripts
	MEMORY=/dev/nullb0
	need udevadm settle
	need grep -qx "write back" /sys/block/nullb0/queue/write_cache
}

# linear NAME DISK FROM LENGTH, in MiB
linear() { need dmsetup create "$1" --table "0 $(sectors "$4") linear $2 $(sectors "$3")"; }

# regions DISK MIB: subjects of so many MiB.
regions() {
	MIB=$2
	STORE_MIB=$((MIB + MIB / 16 + 8))
	REGION=$1
	linear base "$1" 0 "$MIB"
	linear cow "$1" "$MIB" "$STORE_MIB"
	linear lv "$1" "$MIB" "$MIB"
	linear thin-meta "$1" $((MIB + STORE_MIB)) 32
}
regions_mib() { echo $((2 * $1 + $1 / 16 + 8 + 32)); }

# The first touch of a block costs its allocation, in the guest or in the host.
fill() { need dd if=/dev/zero of="$1" bs=1M count="$2" oflag=direct status=none; }

attached() {
	need ctl attach --name disk "$@"
	DEV=/dev/mapper/disk
}

fresh_dscow() {
	need ctl create --force -o granule=4K dscow:/dev/mapper/cow:/dev/mapper/base
	attached --durability "$1" dscow:/dev/mapper/cow:/dev/mapper/base
}

# fresh_snapshot SECTORS: a zeroed header makes it a new one.
fresh_snapshot() {
	need dd if=/dev/zero of=/dev/mapper/cow bs=64k count=1 oflag=direct status=none
	need dmsetup create disk --table "0 $(sectors "$MIB") snapshot /dev/mapper/base /dev/mapper/cow P $1"
	DEV=/dev/mapper/disk
}

# A snapshot of a volume that has all its blocks.
fresh_thin() {
	need dd if=/dev/zero of=/dev/mapper/thin-meta bs=64k count=1 oflag=direct status=none
	# It takes base and cow together.
	linear thin-data "$REGION" 0 $((2 * MIB + MIB / 16))
	need dmsetup create pool --table \
		"0 $(sectors $((2 * MIB + MIB / 16))) thin-pool /dev/mapper/thin-meta /dev/mapper/thin-data 128 0 1 skip_block_zeroing"
	need dmsetup message pool 0 "create_thin 0"
	need dmsetup create origin --table "0 $(sectors "$MIB") thin /dev/mapper/pool 0"
	fill /dev/mapper/origin "$MIB"
	need dmsetup suspend origin
	need dmsetup message pool 0 "create_snap 1 0"
	need dmsetup resume origin
	need dmsetup create disk --table "0 $(sectors "$MIB") thin /dev/mapper/pool 1"
	DEV=/dev/mapper/disk
}

fresh_qcow2_image() { need qemu-img create -q -f qcow2 /dev/mapper/cow "${MIB}M"; }

nbd_size() { (($(blockdev --getsz /dev/nbd0) == $(sectors "$MIB"))); }

# fresh SUBJECT
fresh() {
	drop
	SUBJECT=$1
	case $1 in
	lv) DEV=/dev/mapper/lv ;;
	dm-linear)
		need dmsetup create disk --table "0 $(sectors "$MIB") linear /dev/mapper/lv 0"
		DEV=/dev/mapper/disk
		;;
	dscow-*) fresh_dscow "${1#dscow-}" ;;
	dm-snapshot-64k) fresh_snapshot 128 ;;
	dm-snapshot-4k) fresh_snapshot 8 ;;
	dm-thin) fresh_thin ;;
	qcow2)
		fresh_qcow2_image
		attached qcow2:/dev/mapper/cow
		;;
	qemu-nbd-qcow2)
		fresh_qcow2_image
		need modprobe nbd nbds_max=1
		need qemu-nbd -c /dev/nbd0 -f qcow2 --cache=none --aio=native --discard=ignore /dev/mapper/cow
		need until_true 20 nbd_size
		DEV=/dev/nbd0
		;;
	*)
		not_ok "set-up" "there is no subject $1: see tests/bench/lib.sh"
		exit 1
		;;
	esac
	need udevadm settle
}

# The last closer of a device may be udev, for a moment.
drop() {
	need udevadm settle
	case $SUBJECT in
	'' | lv) ;;
	dscow-* | qcow2) need until_true 20 ctl detach disk ;;
	qemu-nbd-qcow2)
		need qemu-nbd -d /dev/nbd0
		need until_true 20 eval '! pgrep -x qemu-nbd'
		;;
	dm-thin) need dmsetup remove --retry disk origin pool thin-data ;;
	*) need dmsetup remove --retry disk ;;
	esac
	SUBJECT='' DEV=''
}

# Of the subject, if cowd serves it: messages FAULT so far, those for leaves among them.
faults() {
	case $SUBJECT in
	dscow-* | qcow2) ctl stats --json disk | jq '.devices[0].session | .faults + .leaf_faults' ;;
	*) echo 0 ;;
	esac
}

# Nanoseconds that cowd has run, in the kernel and outside.
cowd_ns() {
	[[ $cowd_pid ]] || { echo 0; return; }
	cat "/proc/$cowd_pid/task"/*/schedstat | awk '{ ns += $1 } END { printf "%.0f\n", ns }'
}

# Milliseconds of FILE, a copy of /proc/stat, that no CPU had anything to do.
idle_ms() { awk '/^cpu / { print ($5 + $6) * 10 }' "$1"; }

# record CASE UNIT VALUE [NAME JSON]...
record() {
	local case=$1 unit=$2 value=$3 extra=()
	shift 3
	while (($#)); do
		extra+=(--argjson "$1" "$2")
		shift 2
	done
	jq -nc --arg instrument "$INSTRUMENT" --arg case "$case" --arg subject "$SUBJECT" --arg unit "$unit" \
		--argjson round "$ROUND" --argjson value "$value" "${extra[@]}" '$ARGS.named' >>"$ROUNDS_FILE"
	printf '%-22s %-16s %12.1f %s\n' "$case" "$SUBJECT" "$value" "$unit"
}

# run_fio ARGUMENT...: its JSON, without the notes that it puts before it, in $WORK/fio.json.
run_fio() {
	# What its exec_prerun says goes to a file in the working directory.
	cd "$WORK" || exit
	need fio --randseed=1 --output-format=json --output="$WORK/fio.out" "$@"
	cd "$TOP" || exit
	sed -n '/^{/,$p' "$WORK/fio.out" >"$WORK/fio.json"
	need jq -e '.jobs[0]' "$WORK/fio.json"
}
# How long it took.
fio_ms() { jq '[.jobs[] | .read.runtime, .write.runtime] | max' "$WORK/fio.json"; }

# measure CASE UNIT FIO-ARGUMENT...: UNIT is IOPS or MiB/s.
measure() {
	local case=$1 unit=$2 faults_before ns_before cpus
	shift 2
	need udevadm settle
	cpus=$(nproc)
	faults_before=$(faults) ns_before=$(cowd_ns)
	# On a file system it is files, not the device.
	[[ " $* " == *' --directory='* ]] || set -- --filename="$DEV" --direct=1 "$@"
	# Before and after fio waits for this and that.
	run_fio --name="$case" --exec_prerun='cat /proc/stat' --exec_postrun='cat /proc/stat' "$@"
	local idle ns faults_now
	idle=$(($(idle_ms "$WORK/$case.postrun.txt") - $(idle_ms "$WORK/$case.prerun.txt")))
	ns=$(($(cowd_ns) - ns_before)) faults_now=$(($(faults) - faults_before))
	local ms ios bytes value
	read -r ms ios bytes < <(jq -r '.jobs | "\(map([.read.runtime, .write.runtime] | max) | max) \(
		map(.read.total_ios + .write.total_ios) | add) \(map(.read.io_bytes + .write.io_bytes) | add)"' "$WORK/fio.json")
	need test "${ms:-0}" -gt 0
	case $unit in
	IOPS) value=$((ios * 1000000 / ms)) ;;
	MiB/s) value=$((bytes * 1000000 / 1048576 / ms)) ;;
	esac
	printf -v value '%d.%03d' $((value / 1000)) $((value % 1000))
	record "$case" "$unit" "$value" ms "$ms" ios "$ios" bytes "$bytes" faults "$faults_now" \
		cowd_ns "$ns" system_ms $((ms * cpus - idle))
}
