#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Bases and tops that are NBD exports: connected when first used, shared, connected again when the
# server comes back, found by a restarted cowd, disconnected with the last user.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes cow1=80M cow2=80M cow3=80M
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
kill -STOP "$(cat "$WORK/base.pid")"
check "list while the server is frozen" timeout 10 cowctl --socket "$RUN/control.sock" list
check "another disk is attached meanwhile" timeout 20 cowctl --socket "$RUN/control.sock" attach --name third "raw:$(vol cow3)"
need ctl detach third
# LVM must not look at what waits for the server.
check "a transient store is made meanwhile" ctl attach --name passing "dscow:transient@$VG:$(vol cow3)"
check "its device goes" ctl detach passing
check "and its store with it" test "$(ctl stores --json | jq '.stores | length')" = 0
kill -CONT "$(cat "$WORK/base.pid")"
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
