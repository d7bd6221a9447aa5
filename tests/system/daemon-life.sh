#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What may become of cowd while its devices are written to: stopped by SIGSTOP, replaced by another
# binary, started twice at once, killed by the kernel for want of memory, robbed of /run/cowd,
# started before what its devices lie on is there. No I/O error, nothing lost.
# (stop-start.sh, kill50.sh and cowd-restart.sh have plain stops and kills, cowd-service.sh what
# systemd makes of them.)  COWD_STOPPED: seconds that it is stopped; COWD_ROUNDS: of starts.

# shellcheck source=tests/system/lib.sh
# shellcheck disable=SC2016 # what eval is given
. "$(dirname "$0")/lib.sh"
STOPPED=${COWD_STOPPED:-12}
ROUNDS=${COWD_ROUNDS:-3}
SIZE=$((64 << 20))
GROUP=/sys/fs/cgroup/cowd-life

state() { ctl --json info disk | jq -r .state; }
is_active() { [[ $(state) == active ]]; }
commits() { ctl --json stats disk | jq '.devices[0].session.commits'; }
written() { awk '{ print $5 }' "/sys/block/$(basename "$(readlink -f /dev/mapper/disk)")/stat"; }
still() { kill -0 "$load" 2>/dev/null; }
# start_load SEED: on a fresh store, so that cowd is needed.
start_load() {
	cp "$WORK/base" "$WORK/state"
	if dmsetup info disk >/dev/null 2>&1; then need ctl detach disk; fi
	need ctl create --force -o granule=4K "$spec"
	need ctl attach --name disk "$spec"
	blockload load /dev/mapper/disk "$WORK/state" --seed "$1" --sync-every 8 >"$WORK/load" 2>&1 &
	load=$!
}
# goes_on NAME: the load writes, and cowd makes it durable.
goes_on() {
	local writes
	writes=$(written)
	check "$1: the load goes on" until_true 60 eval "still && ((\$(written) > $writes + 100))"
	check "$1: and is made durable" until_true 60 eval "((\$(commits) > 0))"
}
end_load() {
	kill -TERM "$load"
	ended "$1: the load saw no error" "$load" "$WORK/load"
	check "$1: nothing is lost" blockload verify /dev/mapper/disk "$WORK/state"
}

volumes base=64M cow=80M
need blockload fill "$(vol base)" "$WORK/base" --bytes "$SIZE"
spec=dscow:$(vol cow):$(vol base)
start_cowd

# --- SIGSTOP ---

start_load 1
goes_on "stopped"
kill -STOP "$cowd_pid"
writes=$(written)
sleep "$STOPPED"
echo "# figure: $(($(written) - writes)) writes while cowd was stopped for $STOPPED s"
kill -CONT "$cowd_pid"
goes_on "stopped for $STOPPED s"
check "stopped: it is the same cowd" kill -0 "$cowd_pid"
end_load "stopped"

# --- another binary, in the place of the one that runs ---

# It looks for libdmu beside its own folder.
need cp -r "$TOP/build/lib" "$WORK/lib"
need mkdir "$WORK/bin"
start_load 2
for ((round = 1; round <= ROUNDS; round++)); do
	need cp -r "$TOP/build/bin/cowd" "$WORK/bin/cowd.new"
	need cp -r "$TOP/build/plugins" "$WORK/bin/plugins.new"
	need mv "$WORK/bin/cowd.new" "$WORK/bin/cowd"
	rm -rf "$WORK/bin/plugins"
	need mv "$WORK/bin/plugins.new" "$WORK/bin/plugins"
	if ((round > 1)); then
		check "upgrade: the file of the running one is gone" eval '[[ $(readlink "/proc/$cowd_pid/exe") == *deleted* ]]'
	fi
	end_cowd TERM || not_ok "upgrade: the old one ended as asked" "status $?"
	plain_command=("${cowd_command[@]}")
	cowd_command=("$WORK/bin/cowd" --foreground --run-dir "$RUN" --plugin-dir "$WORK/bin/plugins")
	start_cowd
	cowd_command=("${plain_command[@]}")
	check "upgrade: the new one runs" test "$(readlink "/proc/$cowd_pid/exe")" = "$WORK/bin/cowd"
	goes_on "upgrade"
done
end_load "upgrade"

# --- two that start at once ---

start_load 3
for ((round = 1; round <= ROUNDS; round++)); do
	end_cowd KILL
	"${cowd_command[@]}" >"$WORK/one" 2>&1 &
	one=$!
	"${cowd_command[@]}" >"$WORK/two" 2>&1 &
	two=$!
	wait -n -p lost "$one" "$two"
	status=$?
	cowd_pid=$((lost == one ? two : one))
	said=$WORK/$( ((lost == one)) && echo one || echo two)
	check "two at once: one has lost" test "$status" = 1
	check "two at once: and says to whom" grep -q "Another cowd (process .*) serves $RUN" "$said"
	check "two at once: the other serves" until_true 60 is_active
	goes_on "two at once"
done
end_load "two at once"

# --- killed for want of memory ---

end_cowd TERM
printf '[process]\noom_protect = false\n' >"$WORK/cowd.toml"
need mkdir "$GROUP"
grep -qw memory "$GROUP/cgroup.controllers" || echo +memory >/sys/fs/cgroup/cgroup.subtree_control
"$TOP/tests/lab/kernel-log" expect "Call Trace:"
plain_command=("${cowd_command[@]}")
cowd_command=(bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$GROUP" "${cowd_command[@]}" --config "$WORK/cowd.toml")
start_cowd
cowd_command=("${plain_command[@]}")
start_load 4
goes_on "out of memory"
# Much less than what it has locked, or it may fit.
echo 512K >"$GROUP/memory.max"
wait "$cowd_pid"
check "out of memory: it was killed" test $? = 137
check "out of memory: by the kernel" grep -qx "oom_kill [1-9][0-9]*" "$GROUP/memory.events"
check "out of memory: the load waits" still
start_cowd
goes_on "out of memory"
end_load "out of memory"
rmdir "$GROUP"

# --- what it lies on is not there yet ---

# A name that is not udev's, which would make it anew.
need ctl detach disk
need ln -s "$(vol cow)" "$WORK/late"
plain_spec=$spec
spec=dscow:$WORK/late:$(vol base)
start_load 5
goes_on "too early"
end_cowd KILL
need rm "$WORK/late"
start_cowd
check "too early: it is told" until_true 30 eval 'ctl events | grep -q "$WORK/late does not exist"'
check "too early: the load waits" still
need ln -s "$(vol cow)" "$WORK/late"
check "too early: it is served when that is there" until_true 60 is_active
goes_on "too early"
end_load "too early"
# The same where the device is gone, too.
end_cowd KILL
need dmsetup remove disk
need rm "$WORK/late"
start_cowd
need ln -s "$(vol cow)" "$WORK/late"
check "too early, and no device: the store can be attached" ctl attach --name disk "$spec"
check "too early, and no device: nothing is lost" blockload verify /dev/mapper/disk "$WORK/state"

# --- the run directory is lost ---

need ctl detach disk
spec=$plain_spec
start_load 6
goes_on "run directory lost"
rm -r "$RUN"
writes=$(written)
check "run directory lost: the load goes on" until_true 60 eval "still && ((\$(written) > $writes + 100))"
said=$(ctl list 2>&1)
check "run directory lost: no cowd is found" grep -q "No cowd listens" <<<"$said"
# Nothing keeps a second one out now.
first=$cowd_pid
start_cowd
said=$(ctl attach --name disk "$spec" 2>&1)
check "run directory lost: a second one leaves the device to the first" \
	grep -q "There is a device disk already" <<<"$said"
end_cowd TERM
cowd_pid=$first
writes=$(written)
check "run directory lost: which goes on" until_true 60 eval "still && ((\$(written) > $writes + 100))"
end_cowd TERM || not_ok "run directory lost: it ended as asked" "status $?"
from=$(stat -c %s "$LOG")
start_cowd
check "run directory lost: the next one tells of the device" \
	eval 'tail -c "+$from" "$LOG" | grep -q "disk has the target .* but .* has no note of it"'
check "run directory lost: the load waits" still
said=$(ctl attach --name disk "dscow:$(vol base)" 2>&1)
check "run directory lost: not with another store" test $? != 0
echo "# $said"
check "run directory lost: attached by hand it is served again" ctl attach --name disk "$spec"
goes_on "run directory lost"
end_cowd KILL
start_cowd
check "run directory lost: and is noted again" is_active
end_load "run directory lost"
reattach cow base disk flush
check "run directory lost: nothing is lost after detach and attach" \
	blockload verify /dev/mapper/disk "$WORK/state"
need ctl detach disk
check "the store has no error" ctl check "$spec"
