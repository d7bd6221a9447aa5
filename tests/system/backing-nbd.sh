#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Bases and tops that are NBD exports: connected when first used, shared, connected again when the
# server comes back, found by a restarted cowd, disconnected with the last user.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes cow1=80M cow2=80M cow3=80M cow4=80M
modprobe nbd nbds_max=4
BASE=$WORK/base.img
STORE=$WORK/top.img
truncate -s 64M "$BASE" "$STORE"
need mkfs.ext4 -q "$BASE"
before=$(sha256sum <"$BASE")

serve() { # FILE EXPORT PORT OPTIONS...
	local file=$1 export=$2 port=$3
	shift 3
	qemu-nbd --persistent --shared=16 -f raw -x "$export" -p "$port" -b 127.0.0.1 \
		--pid-file "$WORK/$export.pid" --fork "$@" "$file"
}
# end_server EXPORT SIGNAL
end_server() {
	local pid
	pid=$(cat "$WORK/$1.pid")
	kill -"$2" "$pid"
	tail --pid="$pid" -f /dev/null
}
connected() { cat /sys/block/nbd*/backend 2>/dev/null | grep -c "$1"; }
keepers() { pgrep -c -x cowd-nbd; }

mkdir "$WORK/disks.d"
printf '[paths]\ndisks_dir = "%s"\n' "$WORK/disks.d" >"$WORK/cowd.toml"
cowd_command+=(--config "$WORK/cowd.toml")

# Somebody else's device, which must stay as it is.
need serve "$STORE" other 10811
need nbd-client -N other 127.0.0.1 10811 /dev/nbd2
need serve "$BASE" base 10810 --read-only
url=nbd://127.0.0.1:10810/base
start_cowd

check "create over an export" ctl create --force "dscow:$(vol cow1):$url"
check "create the second" ctl create --force "dscow:$(vol cow2):$url"
check "nothing stays connected after that" until_true 10 test "$(connected "$url")" = 0
check "attach" ctl attach --name one "dscow:$(vol cow1):$url"
check "it is connected" test "$(connected "$url")" = 1
check "a second disk" ctl attach --name two "dscow:$(vol cow2):$url"
check "it shares the connection" test "$(connected "$url")" = 1
check "one program keeps it" test "$(keepers)" = 1
check "reads the base" cmp -n 67108864 /dev/mapper/one "$BASE"

said=$(ctl attach --name none "dscow:$(vol cow3):nbd://127.0.0.1:10810/none" 2>&1)
check "an export that is not there is named" grep -q "no export 'none'" <<<"$said"
said=$(ctl attach --name none "dscow:$(vol cow3):nbd://127.0.0.1:1/base" 2>&1)
check "and a server that is not there" grep -q "cannot be connected to" <<<"$said"
echo "# $said"

# --- the server goes and comes back under I/O ---
need mount /dev/mapper/one "$MNT"
reader() { for _ in {1..8}; do dd if=/dev/mapper/two of=/dev/null bs=1M iflag=direct status=none || return; done; }
reader >"$WORK/reader" 2>&1 &
reading=$!
end_server base KILL
cp -r /etc/default "$MNT/etc" >"$WORK/writer" 2>&1 &
copying=$!
kill -0 "$reading"
check "the reader waits" test $? = 0
need serve "$BASE" base 10810 --read-only
# Not by check, whose subshell cannot wait for them.
ended "it reads on when the server is back" "$reading" "$WORK/reader"
ended "and the writer writes on" "$copying" "$WORK/writer"
check "what was written is there" diff -r --no-dereference /etc/default "$MNT/etc"

# --- a frozen server stops nobody else ---
need ctl create --force "dscow:$(vol cow4):$url"
kill -STOP "$(cat "$WORK/base.pid")"
check "list while the server is frozen" timeout 10 cowctl --socket "$RUN/control.sock" list
check "another disk is attached meanwhile" timeout 20 cowctl --socket "$RUN/control.sock" attach --name third "raw:$(vol cow3)"
need ctl detach third
# LVM must not look at what waits for the server.
check "a transient store is made meanwhile" ctl attach --name passing "dscow:transient@$VG:$(vol cow3)"
check "its device goes" ctl detach passing
check "and its store with it" test "$(ctl stores --json | jq '.stores | length')" = 0
timeout 3 cowctl --socket "$RUN/control.sock" attach --name unwanted "dscow:$(vol cow4):$url" >/dev/null 2>&1
check "an attach over it waits until its client goes" test $? = 124
kill -CONT "$(cat "$WORK/base.pid")"
given_up() { ctl events 2>/dev/null | grep -q "unwanted was given up"; }
check "what nobody wants any more is undone" until_true 40 given_up
check "and leaves no device" bash -c '! dmsetup info unwanted'
check "nor a claim on its store" ctl attach --name wanted "dscow:$(vol cow4):$url"
need ctl detach wanted
check "and goes on" dd if=/dev/mapper/two of=/dev/null bs=1M iflag=direct status=none

# --- cowd is killed ---
end_cowd KILL
start_cowd
check "a restarted cowd serves on" dd if=/dev/mapper/two of=/dev/null bs=1M iflag=direct status=none
check "over the same connection" test "$(connected "$url")" = 1
need umount "$MNT"
check "detach the first" ctl detach one
check "the connection stays for the second" test "$(connected "$url")" = 1
check "detach the second" ctl detach two
check "the last user disconnects" until_true 10 eval "test \$(connected '$url') = 0"
check "and its program ends" until_true 10 eval "! pgrep -x cowd-nbd"
check "nothing is left in the run directory" test -z "$(find "$RUN" -name 'helper-*')"
check "the base did not change" test "$(sha256sum <"$BASE")" = "$before"

# --- an export as top ---
check "somebody else's device is as it was" cmp -n 67108864 /dev/nbd2 "$STORE"
nbd-client -d /dev/nbd2 >/dev/null
end_server other TERM
need serve "$STORE" top 10812
check "attach an export as top" ctl attach --name top raw:nbd://127.0.0.1:10812/top
check "write to it" dd if=/dev/urandom of=/dev/mapper/top bs=1M count=16 oflag=direct conv=fsync status=none
sum=$(dd if=/dev/mapper/top bs=1M count=16 iflag=direct status=none | sha256sum)
check "detach it" ctl detach top
check "it is on the server" test "$(dd if="$STORE" bs=1M count=16 status=none | sha256sum)" = "$sum"

# --- a server of a top is frozen while cowd is started: its disk waits, no other does ---
truncate -s 32M "$WORK/small.img"
store=dscow:nbd://127.0.0.1:10812/top:$WORK/small.img
need ctl create --force "$store"
need ctl attach --name slow "$store"
need ctl attach --name quick "raw:$(vol cow3)"
state() { ctl --json list | tr -d ' \n' | grep -o "\"name\":\"$1\"[^}]*" | grep -o '"state":"[a-z]*"' | cut -d '"' -f 4; }
kill -STOP "$(cat "$WORK/top.pid")"
end_cowd KILL
began=$SECONDS
start_cowd
check "cowd is ready all the same" test $((SECONDS - began)) -lt 20
check "another disk is read" timeout 10 dd if=/dev/mapper/quick of=/dev/null bs=1M count=4 iflag=direct status=none
check "and one is attached" timeout 20 cowctl --socket "$RUN/control.sock" attach --name third "raw:$(vol cow4)"
check "the frozen one waits" test "$(state slow)" = recovering
kill -CONT "$(cat "$WORK/top.pid")"
served() { [[ $(state slow) = active ]]; }
check "and is served when its server goes on" until_true 90 served
check "it can be read" timeout 30 dd if=/dev/mapper/slow of=/dev/null bs=1M count=4 iflag=direct status=none
for name in slow quick third; do need ctl detach "$name"; done
check "no connection is left" until_true 15 eval "test \$(connected 10812) = 0"

# --- cowd-nbd is killed while it is waited for ---
kept=(cowd-nbd --backend kept --hold "$WORK/hold" nbd://127.0.0.1:10812/top)
need until_true 10 eval "test \$(keepers) = 0"
touch "$WORK/hold"
need "${kept[@]}"
device=/dev/$(basename "$(dirname "$(grep -lx kept /sys/block/nbd*/backend)")")
exec 8<"$device"
kill -KILL "$(pgrep -x cowd-nbd)"
check "started again it goes on" "${kept[@]}" 8<&-
check "with the same device" test "$(connected kept)" = 1
check "which one program keeps" until_true 5 eval "test \$(keepers) = 1"
exec 8<&-
check "open until it is not waited for" test "$(connected kept)" = 1
rm "$WORK/hold"
check "and gone then" until_true 10 eval "test \$(connected kept) = 0"
check "with its program" until_true 10 eval "! pgrep -x cowd-nbd"

# --- killed before it had said that the last close disconnects, which is as it opens the device ---
touch "$WORK/hold"
strace -qq -o /dev/null -P /dev/nbd0 -P /dev/nbd1 -P /dev/nbd2 -P /dev/nbd3 -e trace=openat -e inject=openat:signal=KILL "${kept[@]}"
check "connected, and open to nobody" test "$(connected kept)" = 1
rm "$WORK/hold"
check "started again it sees to that" "${kept[@]}"
check "and nothing is left" until_true 10 eval "test \$(connected kept) = 0 && ! pgrep -x cowd-nbd"

# --- a base whose server may be lost for three seconds ---
cat >"$WORK/disks.d/short.toml" <<-END
	spec = "raw:nbd://127.0.0.1:10812/top"
	on_backing_loss = "error"
	backing_loss_timeout = "3s"
END
check "attach a named disk" ctl attach --read-only --name short @short
end_server top KILL
began=$SECONDS
dd if=/dev/mapper/short of=/dev/null bs=1M count=1 iflag=direct status=none 2>/dev/null
check "its reads fail" test $? != 0
check "after the time it was given" test $((SECONDS - began)) -ge 2 -a $((SECONDS - began)) -lt 30
ctl detach short
check "its device is gone, too" until_true 15 eval "test \$(connected 10812) = 0"
pkill -F "$WORK/base.pid"
