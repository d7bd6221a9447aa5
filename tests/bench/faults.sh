#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# faults.sh [--kinds 'KIND...'] [--threads N]: in a machine whose clock counts instructions, what one question of the kernel's
# costs, of a cowd with N threads: instructions that cowd runs and that the machine runs, allocations and system calls
# of cowd.  Three passes, since to count allocations or system calls costs instructions.
#
#   leaf-fault        a read in a leaf that the kernel does not have, one at a time
#   leaf-fault-16     the same, sixteen at a time
#   commit            a first write and its FLUSH
#   qcow2-fault       a first write to a qcow2 image
#   promotion         a first write that no FLUSH waits for: no question, but cowd is told
#
# It leaves the order of events in a leaf fault and in a commit, in order-*.

# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"

TRACING=/sys/kernel/debug/tracing
CALLS=$TRACING/events/raw_syscalls/sys_enter/trigger
HIST='hist:keys=id:size=512 if comm == "cowd"'
COUNTS=$WORK/counts
GIB=256
KINDS='leaf-fault leaf-fault-16 commit qcow2-fault promotion'
while (($#)); do
	case $1 in
	--kinds) KINDS=$2 ;;
	--threads)
		printf '[process]\nthreads = %d\n' "$2" >"$WORK/cowd.toml"
		cowd_command+=(--config "$WORK/cowd.toml")
		;;
	*)
		not_ok "faults.sh" "$1 is none of its options, which its first lines name"
		exit 1
		;;
	esac
	shift 2
done

# A disk of 2048 leaves; what is not written takes no memory.
make_disks() {
	make_ram $(((GIB + 16) * 1024))
	need modprobe dm-zero
	need dmsetup create base --table "0 $((GIB << 21)) zero"
	linear cow "$MEMORY" 0 $(((GIB + 15) * 1024))
	need udevadm settle
}

# prepare KIND
prepare() {
	SUBJECT=dscow-flush
	case $1 in
	qcow2-fault)
		SUBJECT=qcow2
		need qemu-img create -q -f qcow2 /dev/mapper/cow "${GIB}G"
		attached qcow2:/dev/mapper/cow
		;;
	*) fresh_dscow flush ;;
	esac
	need udevadm settle
	# The leaves that the writes below are in.
	case $1 in
	commit | promotion) need dd if="$DEV" of=/dev/null bs=1M count=300 iflag=direct status=none ;;
	esac
}

# load KIND: as much as it takes to hear the mean of.
load() {
	local args=(--ioengine=psync --bs=4k)
	case $1 in
	leaf-fault) args+=(--rw=read:131068k --io_size=8M) ;;
	leaf-fault-16) args+=(--rw=read:131068k --io_size=8M --ioengine=libaio --iodepth=16) ;;
	commit) args+=(--rw=write:60k --fdatasync=1 --io_size=8M) ;;
	promotion) args+=(--rw=write:60k --io_size=8M) ;;
	qcow2-fault) args+=(--rw=randwrite --blockalign=64k --norandommap --random_generator=tausworthe64 --io_size=8M) ;;
	esac
	run_fio --name="$1" --filename="$DEV" --direct=1 "${args[@]}"
}

# How often the kernel has asked, or, of promotions, told.
events() {
	local which
	case $1 in
	leaf-fault*) which=.session.leaf_faults ;;
	commit) which=.session.flushes ;;
	qcow2-fault) which=.session.faults ;;
	promotion) which=.kernel.promotions ;;
	esac
	ctl stats --json disk | jq ".devices[0]$which"
}

# The clock's nanoseconds are two an instruction.
count_instructions() {
	local kind=$1 n=$2 ms
	ms=$(fio_ms)
	record "$kind-instructions" instructions $((($(cowd_ns) - ns) / 2 / n))
	record "$kind-machine" instructions $((ms * 500000 / n))
}

calls_so_far() { awk '/hitcount:/ { n += $NF } END { print n + 0 }' "${CALLS%trigger}hist"; }
allocations_so_far() { od -A n -t u8 "$COUNTS" | awk '{ print $1 }'; }

# per NAME UNIT COUNT EVENTS: to a tenth.
per() { record "$1" "$2" "$(awk -v c="$3" -v n="$4" 'BEGIN { printf "%.1f", c / n }')"; }

# What happens in which order, of the last of 16 of KIND.
keep_order() {
	local events=$TRACING/events each
	for each in raw_syscalls/sys_enter raw_syscalls/sys_exit sched/sched_switch sched/sched_waking \
		block/block_bio_queue block/block_rq_issue block/block_rq_complete; do
		echo 1 >"$events/$each/enable"
	done
	echo >"$TRACING/trace"
	echo 1 >"$TRACING/tracing_on"
	need fio --name=order --filename="$DEV" --direct=1 --ioengine=psync --bs=4k --offset=128G --output=/dev/null \
		"${@:2}"
	echo 0 >"$TRACING/tracing_on"
	echo 0 >"$events/enable"
	tail -n 3000 "$TRACING/trace" >"${LAB_RESULTS:-$WORK}/order-$1"
}

# pass WHAT: all kinds, with that counted.
pass() {
	local kind before n ns calls
	for kind in $KINDS; do
		prepare "$kind"
		before=$(events "$kind") ns=$(cowd_ns)
		case $1 in
		calls)
			echo "$HIST" >"$CALLS"
			;;
		allocations) calls=$(allocations_so_far) ;;
		esac
		load "$kind"
		# Asking for the figures is counted with them; it is one request among two thousand.
		case $1 in
		calls) calls=$(calls_so_far) ;;
		allocations) calls=$(($(allocations_so_far) - calls)) ;;
		esac
		n=$(($(events "$kind") - before))
		if ((n == 0)); then
			not_ok "$kind" "it did not happen: the kernel never asked"
			exit 1
		fi
		case $1 in
		instructions) count_instructions "$kind" "$n" ;;
		calls)
			per "$kind-calls" calls "$calls" "$n"
			cat "${CALLS%trigger}hist" >"${LAB_RESULTS:-$WORK}/calls-$kind"
			echo "!$HIST" >"$CALLS"
			;;
		allocations) per "$kind-allocations" allocations "$calls" "$n" ;;
		esac
		need until_true 20 ctl detach disk
		SUBJECT=
	done
}

need modprobe dm-userspace
make_disks
ROUND=1
start_cowd
pass instructions
pass calls
prepare leaf-fault
keep_order leaf-fault --rw=read:131068k --io_size=64k
need until_true 20 ctl detach disk
prepare commit
keep_order commit --rw=write:60k --fdatasync=1 --io_size=64k
need until_true 20 ctl detach disk
end_cowd TERM || not_ok "the end of cowd" "its status is not 0"
cowd_command=(env LD_PRELOAD="$TOP/build/tests/bench/count_allocations.so" COUNT_FILE="$COUNTS" "${cowd_command[@]}")
start_cowd
pass allocations
SUBJECT=
