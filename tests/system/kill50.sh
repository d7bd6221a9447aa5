#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowd is killed 50 times (and ten times more while it starts) under a verified load:
# no I/O error, no lost write.  Prints the time from kill to the first fault answered.
#
# The disk is so large that each probe lies in a bitmap leaf (128 MiB) of which the
# kernel knows nothing; the load runs in the first leaves.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
kills=50
size=$((192 << 20))
leaf=$((128 << 20))
# Two disks' worth: leaf 2 and on are for the probes.
volumes base=192M cow=8G
need blockload fill "$(vol base)" "$WORK/state" --bytes "$size"
cp "$WORK/state" "$WORK/base"
start_cowd
need ctl create --force "dscow:$(vol cow):$(vol base)" 7G
need ctl attach --name disk "dscow:$(vol cow):$(vol base)"
end_cowd KILL

blockload load /dev/mapper/disk "$WORK/state" --seed "${COWD_SEED:-3}" --sync-every 12 >"$WORK/load" 2>&1 &
load=$!
killer /dev/mapper/disk $((2 * leaf)) "$leaf" "$kills" "$LOG" -- "${cowd_command[@]}" >"$WORK/kills" 2>&1
status=$?
sed -e 's/^/# /' -e "s/^# $kills kills/# figure: $kills kills/" "$WORK/kills"
if ((status == 0)) && grep -q "^$kills kills" "$WORK/kills"; then
	ok "kill50: every probe was answered"
else
	not_ok "kill50: every probe was answered" "$(tail -n 1 "$WORK/kills")"
fi
start_cowd
kill -TERM "$load" 2>/dev/null
ended "kill50: the load saw no error" "$load" "$WORK/load"
check "kill50: no write is lost" blockload verify /dev/mapper/disk "$WORK/state"
errors=$(counter disk errors)
[[ $errors == 0 ]] || not_ok "kill50: the kernel counts no error" "it counts $errors"
reattach cow base disk flush
check "kill50: no write is lost after detach and attach" blockload verify /dev/mapper/disk "$WORK/state"
check "kill50: the base is what it was" blockload verify "$(vol base)" "$WORK/base"
need ctl detach disk
check "kill50: the store has no error" ctl check "dscow:$(vol cow):$(vol base)"
