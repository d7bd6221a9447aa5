#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Bases and tops that are logical units of an iSCSI target (tgt, in this machine): one session
# for all of a target, CHAP without a password in any argument, a target that goes and comes back, found
# by a restarted cowd, logged out with the last user; what is somebody else's stays.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes cow1=80M cow2=80M base=64M
IQN=iqn.2003-01.org.example
SECRET=never-in-an-argument
mkdir "$WORK/disks.d"
printf '[paths]\ndisks_dir = "%s"\n' "$WORK/disks.d" >"$WORK/cowd.toml"
cowd_command+=(--config "$WORK/cowd.toml")
need install -D -m 644 -t /run/udev/rules.d "$TOP/packaging/udev/56-dm-userspace.rules"
need udevadm control --reload
truncate -s 64M "$WORK/unit1" "$WORK/unit2" "$WORK/closed1"
truncate -s 80M "$WORK/unit3"
mkfs.ext4 -q -F "$WORK/unit1"
before=$(sha256sum <"$WORK/unit1")

# --- the target: "disks" for everybody, "closed" with CHAP in both directions ---
tgt() { tgtadm --lld iscsi "$@"; }
start_target() {
	local unit
	tgtd -f --iscsi portal=127.0.0.1:3260 >>"$WORK/tgtd.log" 2>&1 &
	until_true 30 tgtadm --op show --mode sys || return
	# Nobody is told that there is no such target while they are made.
	tgtadm --op update --mode sys --name State -v offline
	tgt --op new --mode target --tid 1 -T $IQN:disks
	for unit in 1 2 3; do
		tgt --op new --mode logicalunit --tid 1 --lun $unit -b "$WORK/unit$unit" || return
	done
	tgt --op bind --mode target --tid 1 -I ALL
	tgt --op new --mode target --tid 2 -T $IQN:closed
	tgt --op new --mode logicalunit --tid 2 --lun 1 -b "$WORK/closed1"
	tgt --op new --mode account --user guest --password "$SECRET"
	tgt --op bind --mode account --tid 2 --user guest
	tgt --op new --mode account --user disks --password "$SECRET-too"
	tgt --op bind --mode account --tid 2 --user disks --outgoing
	tgt --op bind --mode target --tid 2 -I ALL
	tgtadm --op update --mode sys --name State -v ready
}
end_target() {
	local pid
	pid=$(pgrep -x tgtd)
	kill -KILL "$pid"
	tail --pid="$pid" -f /dev/null
}
start_iscsid() {
	# It ends its whole process group with itself.
	setsid iscsid -f >>"$WORK/iscsid.log" 2>&1 &
	iscsid=$!
}
echo InitiatorName=iqn.1993-08.org.debian:01:lab >/etc/iscsi/initiatorname.iscsi
mkdir -p /run/lock/iscsi
modprobe iscsi_tcp
need start_target
start_iscsid

# INTERFACE: how many sessions go through it.
sessions() { cat /sys/class/iscsi_session/*/ifacename 2>/dev/null | grep -c -x "$1"; }
no_session_of_ours() { [[ $(sessions cowd) = 0 ]]; }
# INTERFACE: the name of its session.
name_of() { basename "$(dirname "$(grep -l -x "$1" /sys/class/iscsi_session/*/ifacename)")"; }
# INTERFACE UNIT: the disk.
disk_of() { basename "/sys/class/iscsi_session/$(name_of "$1")"/device/target*/*:"$2"/block/*; }
# Not what iscsid made of a discovery.
records_of_ours() { find /etc/iscsi -name cowd -path '*/nodes/*' | wc -l; }

# --- somebody else's session, to the same target ---
need until_true 30 iscsiadm -m discovery -t sendtargets -p 127.0.0.1
need iscsiadm -m node -T $IQN:disks -p 127.0.0.1 --login
check "somebody else is logged in" test "$(sessions default)" = 1
there() { test -b "/dev/$(disk_of "$@")"; }
need until_true 30 there default 1
need until_true 30 there default 2

url=iscsi://127.0.0.1/$IQN%3Adisks
start_cowd
check "create over a unit" ctl create --force "dscow:$(vol cow1):$url/1"
check "no session stays after that" test "$(sessions cowd)" = 0
need ctl create --force "dscow:$(vol cow2):$url/1"
need ctl create --force "dscow:$url/3:$(vol base)"
check "attach" ctl attach --name one "dscow:$(vol cow1):$url/1"
check "a session of our own" test "$(sessions cowd)" = 1
check "a second disk" ctl attach --name two "dscow:$(vol cow2):$url/1"
check "a transient one" ctl attach --name passing "dscow:transient@$VG:$url/1"
check "another unit, as top" ctl attach --name three "raw:$url/2"
check "a top there over a volume here" ctl attach --name four "dscow:$url/3:$(vol base)"
check "they share the session" test "$(sessions cowd)" = 1
check "one record of it" test "$(records_of_ours)" = 1
check "reads the base" cmp -n 67108864 /dev/mapper/one "$WORK/unit1"
check "the transient one, too" cmp -n 67108864 /dev/mapper/passing "$WORK/unit1"
write() { dd if=/dev/urandom of="/dev/mapper/$1" bs=1M count=8 oflag=direct conv=fsync status=none; }
check "writes over the base" write one
check "writes in the transient one" write passing
check "writes the top" write three
check "it is on the target" cmp -n 8388608 /dev/mapper/three "$WORK/unit2"
check "writes the dscow top" write four
sum=$(sum_of /dev/mapper/four)

# --- whose disks they are ---
udevadm settle
ours=$(disk_of cowd 1) theirs=$(disk_of default 1)
check "udev looks at others' disks" eval "udevadm info '/dev/$theirs' | grep -q ID_FS_TYPE=ext4"
check "not at ours" eval "! udevadm info '/dev/$ours' | grep -E 'ID_FS|ID_PART|by-path'"
check "which are where LVM's filter looks" test "$(readlink -f "/dev/dmu/$ours")" = "/dev/$ours"
need iscsiadm -m discovery -t sendtargets -p 127.0.0.1
check "what others discover is not bound to us" test "$(records_of_ours)" = 1

# --- one store by any name ---
said=$(ctl attach --name none "raw:/dev/$theirs" 2>&1)
check "the base is not written through another session" grep -q "is the base of" <<<"$said"
said=$(ctl attach --name none "raw:${url/127.0.0.1/localhost}/1" 2>&1)
check "nor by another name of the portal" grep -q "is the base of" <<<"$said"
said=$(ctl attach --read-only --name none "raw:/dev/$(disk_of default 2)" 2>&1)
check "nor is a top read elsewhere" grep -q "is the store of" <<<"$said"

# --- what is not there ---
# NAME SPECIFICATION WORDS: refused with these, in less than 25 seconds.
refused() {
	local began=$SECONDS said
	said=$(ctl attach --name none "$2" 2>&1) && said="It was not refused."
	check "$1 is refused" grep -q -- "$3" <<<"$said"
	check "in less than 25 seconds" test $((SECONDS - began)) -lt 25
	echo "# after $((SECONDS - began)) s: $said"
}
refused "a unit that is not there" "raw:$url/7" "logical unit 7"
check "the session stays for the others" test "$(sessions cowd)" = 1
refused "an unknown target" "raw:iscsi://127.0.0.1/$IQN%3Anone/1" "$IQN:none at 127.0.0.1:3260 is not there"
refused "a portal where nobody listens" "raw:${url/127.0.0.1/127.0.0.1:3261}/9" "at 127.0.0.1:3261"
python3 -c 'import socket, time
s = socket.create_server(("127.0.0.1", 3262))
time.sleep(600)' &
silent=$!
refused "a portal that says nothing" "raw:${url/127.0.0.1/127.0.0.1:3262}/9" "does not answer"
kill $silent
wait $silent 2>/dev/null
refused "a user in a URI" "raw:${url/127.0.0.1/guest:$SECRET@127.0.0.1}/1" "user or password"
check "no record of those stays" test "$(records_of_ours)" = 1

# --- the target goes and comes back under I/O; iscsid is started anew meanwhile ---
session=$(name_of cowd)
reader() { for _ in {1..10}; do dd if=/dev/mapper/two of=/dev/null bs=1M iflag=direct status=none || return; done; }
reader >"$WORK/reader" 2>&1 &
reading=$!
end_target
check "list while the target is gone" timeout 20 cowctl --socket "$RUN/control.sock" list
kill -KILL "$iscsid"
wait "$iscsid" 2>/dev/null
start_iscsid
check "the reader waits" kill -0 "$reading"
need start_target
# Not by check, whose subshell cannot wait for them.
ended "it reads on when the target is back" "$reading" "$WORK/reader"
check "it would wait for ever the next time, too" test "$(cat "/sys/class/iscsi_session/$(name_of cowd)/recovery_tmo")" = off
check "what was written is there" test "$(sum_of /dev/mapper/four)" = "$sum"

# --- cowd is killed ---
end_cowd KILL
# Its logging out would be tried for five seconds.
check "a tool does not wait for devices that outlive cowd" timeout 4 cowctl --plugin-dir "$TOP/build/plugins" info "raw:$url/1"
check "nor end their session" test "$(name_of cowd)" = "$session"
start_cowd
check "a restarted cowd serves on" dd if=/dev/mapper/two of=/dev/null bs=1M iflag=direct status=none
check "over the same session" test "$(name_of cowd)" = "$session"
need ctl detach one
need ctl detach three
need ctl detach four
need ctl detach passing
check "info does not end it" ctl info "dscow:$(vol cow1):$url/1"
check "the session stays for the last" test "$(sessions cowd)" = 1
check "detach the last" ctl detach two
check "the last user logs out" until_true 30 no_session_of_ours
check "no record of ours stays" test "$(records_of_ours)" = 0
check "somebody else is still logged in" test "$(sessions default)" = 1
check "and has his record" test -n "$(find /etc/iscsi/nodes/$IQN:disks -name default)"
check "the base did not change" test "$(sha256sum <"$WORK/unit1")" = "$before"

# --- a disk whose cowd died in the middle of its detach ---
need ctl attach --name one "dscow:$(vol cow1):$url/1"
end_cowd KILL
need dmsetup remove one
start_cowd
check "a new cowd ends a session that nobody uses" until_true 30 no_session_of_ours

# --- CHAP ---
closed=iscsi://127.0.0.1/$IQN%3Aclosed
write_disk() { # PASSWORD
	(
		umask 077
		cat >"$WORK/disks.d/closed.toml" <<-END
			spec = "raw:$closed/1"
			on_backing_loss = "error"
			backing_loss_timeout = "5s"
			[chap]
			user = "guest"
			password = "$1"
			target_user = "disks"
			target_password = "$SECRET-too"
		END
	)
}
strace -f -qq -e trace=execve -s 4096 -o "$WORK/execs" -p "$cowd_pid" &
tracer=$!
need until_true 30 grep -q "TracerPid:.*[1-9]" "/proc/$cowd_pid/status"
refused "no password" "raw:$closed/1" "\[chap\]"
write_disk "$SECRET-wrong"
refused "a wrong password" @closed "user or password"
chmod 644 "$WORK/disks.d/closed.toml"
refused "a password that others may read" @closed "chmod 600"
write_disk "$SECRET"
chmod 600 "$WORK/disks.d/closed.toml"
check "with the right one we are let in" ctl attach --name closed @closed
check "and read" dd if=/dev/mapper/closed of=/dev/null bs=1M count=8 iflag=direct status=none
check "its record is root's alone" test "$(find /etc/iscsi/nodes -name cowd -printf '%m %u')" = "600 root"
kill "$tracer"
wait "$tracer" 2>/dev/null
check "programs were seen" grep -q iscsiadm "$WORK/execs"
check "the password was no argument" eval "! grep '$SECRET' '$WORK/execs'"
check "it is not in the log" eval "! grep '$SECRET' '$LOG'"
check "nor in the run directory" eval "! grep -r '$SECRET' '$RUN'"
ctl events --json >"$WORK/said" 2>&1
ctl list --json >>"$WORK/said" 2>&1
check "events and lists were seen" grep -q closed "$WORK/said"
check "nor in them" eval "! grep '$SECRET' '$WORK/said'"

# --- a target that may be lost for five seconds ---
end_target
began=$SECONDS
dd if=/dev/mapper/closed of=/dev/null bs=1M skip=16 count=1 iflag=direct status=none 2>/dev/null
check "its reads fail" test $? != 0
check "after the time it was given" test $((SECONDS - began)) -ge 3 -a $((SECONDS - began)) -lt 40
said=$(ctl detach closed 2>&1)
check "detach says what may be missing" grep -q "Flushing .* failed" <<<"$said"
check "but is done" eval "! dmsetup info closed"
check "and are logged out" until_true 40 no_session_of_ours
check "the password is in no record that is left" eval "! grep -r '$SECRET' /etc/iscsi"

end_cowd TERM
need start_target
iscsiadm -m node --logoutall=all >/dev/null 2>&1
end_target
kill "$iscsid"
wait "$iscsid" 2>/dev/null
