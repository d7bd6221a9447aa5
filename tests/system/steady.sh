#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# In steady state no fault reaches cowd: after one pass over a disk, fio runs again and
# the counters of the kernel and of cowd stay what they were.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes base=256M cow=300M
start_cowd

load() {
	fio --name=load --filename=/dev/mapper/disk --ioengine=libaio --direct=1 --rw=randrw \
		--bsrange=4k-64k --blockalign=4k --size=256M --io_size=48M --iodepth=16 --randseed="$1" \
		--output="$WORK/fio" >"$WORK/fio.err" 2>&1 || {
		cat "$WORK/fio.err"
		return 1
	}
}

faults() {
	counter disk faults
	ctl stats --json disk | jq '.devices[0].session | .faults + .leaf_faults'
}

for granule in 4K 64K; do
	new_store cow base disk flush "$granule"
	check "steady $granule: a pass over everything" \
		dd if=/dev/mapper/disk of=/dev/null bs=1M iflag=direct status=none
	mapfile -t before < <(faults)
	check "steady $granule: fio over first writes" load 3
	check "steady $granule: fio over rewrites" load 3
	mapfile -t after < <(faults)
	echo "# steady $granule: faults ${before[*]} before, ${after[*]} after, promotions $(counter disk promotions)"
	if [[ ${before[*]} =~ ^[0-9]+\ [0-9]+$ && ${before[*]} == "${after[*]}" ]]; then
		ok "steady $granule: no fault while fio ran"
	else
		not_ok "steady $granule: no fault while fio ran" "faults (kernel, cowd) went from ${before[*]} to ${after[*]}"
	fi
	need ctl detach disk
done
