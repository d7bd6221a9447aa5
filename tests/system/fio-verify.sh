#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# fio with verification on dscow: random sizes, fsync, trims; all three modes, granules
# of 4 KiB and 64 KiB; again after detach and attach where that keeps what was written.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes base=128M cow=160M
dd if=/dev/urandom of="$(vol base)" bs=1M count=128 oflag=direct status=none
base_sum=$(sum_of "$(vol base)")
start_cowd

# Blocks of random size at random places, each written once, an fsync now and then.
written() {
	fio --name=written --filename=/dev/mapper/disk --ioengine=libaio --direct=1 \
		--rw=randwrite --bsrange=512-128k --bs_unaligned=0 --offset=0 --size=64M --io_size=12M \
		--iodepth=8 --fsync=20 --verify=crc32c --verify_fatal=1 --randseed=7 \
		--output-format=terse --output="$WORK/fio" "$@" >"$WORK/fio.err" 2>&1 || {
		cat "$WORK/fio.err"
		return 1
	}
}

# Trims in one half while the other is written, then writes over what was trimmed.
trimmed() {
	local write=(--rw=randwrite --io_size=6M --iodepth=8 --fsync=30 --verify=crc32c --verify_fatal=1)
	fio --filename=/dev/mapper/disk --ioengine=libaio --direct=1 --bsrange=4k-64k --blockalign=4k \
		--size=32M --output-format=terse --output="$WORK/fio" \
		--name=trims --rw=randtrim --offset=96M --io_size=16M --randseed=11 \
		--name=beside --offset=64M --randseed=12 "${write[@]}" \
		--name=over --stonewall --offset=96M --randseed=13 "${write[@]}" >"$WORK/fio.err" 2>&1 || {
		cat "$WORK/fio.err"
		return 1
	}
}

for granule in 4K 64K; do
	for mode in flush always transient; do
		name="fio $mode $granule"
		new_store cow base disk "$mode" "$granule"
		check "$name: written and verified" written
		check "$name: verified through the trims" trimmed
		(($(counter disk discards) > 0)) || not_ok "$name: trims" "the device has seen no discard"
		if [[ $mode != transient ]]; then
			reattach cow base disk "$mode"
			check "$name: verified after detach and attach" written --verify_only
		fi
		check "$name: detached" ctl detach disk
	done
done

if [[ $(sum_of "$(vol base)") == "$base_sum" ]]; then
	ok "fio: the base is what it was"
else
	not_ok "fio: the base is what it was" "its sha256 is another"
fi
