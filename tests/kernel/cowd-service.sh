#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The installed tree under systemd:
#   tests/lab/run --systemd --installed -- /src/tests/kernel/cowd-service.sh
# cowd is ready when systemd says so, serves, is restarted after SIGKILL and after a hang,
# reloads, and stops leaving its devices up.

set -uo pipefail
failures=0
check() {
	local name=$1 said
	shift
	if said=$("$@" 2>&1); then
		echo "ok $name"
	else
		echo "not ok $name - $(tail -n 3 <<<"$said" | tr '\n' ' ')"
		failures=$((failures + 1))
	fi
}
pid() { systemctl show -P MainPID cowd; }

# Until systemd has another cowd ready than process $1.
restarted() {
	local tries
	for ((tries = 0; tries < 900; tries++)); do
		[[ $(pid) != "$1" && $(pid) != 0 && $(systemctl is-active cowd) == active ]] && return
		sleep 0.1
	done
	systemctl status cowd --no-pager
	return 1
}
# What guests' I/O depends on: its memory is locked, the OOM killer passes it by, and no
# thread of it waits for I/O to get memory (PF_MEMALLOC_NOIO, by PR_SET_IO_FLUSHER).
is_in_the_io_path() {
	local process=/proc/$1 task fields threads=0 status=0
	grep -E '^VmLck:[[:space:]]+[1-9]' "$process/status" >/dev/null || {
		echo "it has locked no memory"
		status=1
	}
	[[ $(<"$process/oom_score_adj") == -1000 ]] || {
		echo "its oom_score_adj is $(<"$process/oom_score_adj")"
		status=1
	}
	for task in "$process"/task/*; do
		# One that ends meanwhile.
		fields=$(cat "$task/stat" 2>/dev/null) || continue
		read -ra fields <<<"${fields##*) }"
		threads=$((threads + 1))
		((fields[6] & 0x80000)) || {
			echo "its thread $(<"$task/comm") may wait for I/O"
			status=1
		}
	done
	((threads >= 2)) || {
		echo "it has $threads threads"
		status=1
	}
	return "$status"
}
read_some() { dd if=/dev/mapper/disk of=/dev/null bs=1M count=4 iflag=direct status=none; }

ldconfig
systemctl daemon-reload
udevadm control --reload
udevadm trigger --settle
check "the unit starts" systemctl start cowd
check "it is ready" systemctl is-active cowd
check "the channel is root's alone" test "$(stat -c %a /dev/dm-userspace)" = 600
check "the control socket too" test "$(stat -c %a /run/cowd/control.sock)" = 600
check "nothing was refused by the hardening" bash -c \
	'! journalctl -b -u cowd | grep "cowd could not"'

# shellcheck disable=SC2086 # a list
set -- ${LAB_DISKS-/dev/vdb /dev/vdc}
check "create" cowctl create --force -o size=1G "dscow:$1:$2"
check "attach" cowctl attach --name disk "dscow:$1:$2"
check "udev reads nothing of it" bash -c \
	'! udevadm info /dev/mapper/disk | grep -E "ID_FS_|ID_PART"'
check "read" read_some
check "it is fit to be in the I/O path" is_in_the_io_path "$(pid)"

# What a guest might do to its disk, and LVM on the host must not see.
pvs_of_disk() { pvs --noheadings -o pv_name | grep -E '/(disk|dm-[0-9]+)$'; }
pvcreate -qq -y /dev/mapper/disk
check "LVM sees a guest's PV" pvs_of_disk
check "the doctor says so" bash -c '! cowctl doctor'
line=$(cowctl doctor --json | jq -r '.checks[] | select(.name == "LVM") | .remedy' | sed -n 2p)
sed -i "/^devices {/a $(sed 's/\\/&&/g' <<<"$line")" /etc/lvm/lvm.conf
check "with the line that it gives LVM does not" bash -c '! pvs 2>&1 | grep -E "/(disk|dm-[0-9]+) "'
check "nor does the doctor find more" cowctl doctor
check "as JSON" test "$(cowctl doctor --json | jq -r '.ok')" = true

old=$(pid)
kill -KILL "$old"
check "restarted after SIGKILL" restarted "$old"
check "read after that" read_some
check "the next one is fit for it too" is_in_the_io_path "$(pid)"

old=$(pid)
kill -STOP "$old"
check "restarted after a hang" restarted "$old"
check "read after that as well" read_some

# Nobody but cowd.socket listens between two cowds.
for i in 1 2 3; do
	old=$(pid)
	kill -KILL "$old"
	while [[ -e /proc/$old ]]; do :; done
	check "a request between two cowds is answered ($i)" cowctl list
done
(systemctl restart cowd) &
# One that the old cowd had taken may be cut off; it is asked again by who has --timeout.
check "a request during a restart meets a cowd" \
	bash -c 'for i in {1..50}; do
		said=$(cowctl list 2>&1) || [[ $said != *"No cowd listens"* ]] || { echo "$said"; exit 1; }
	done'
wait
check "the socket outlived all of them" systemctl is-active cowd.socket
check "read once more" read_some

check "reload" systemctl reload cowd
check "stop" systemctl stop cowd
check "the device stays" dmsetup info disk
check "the note stays" test -e /run/cowd/devices.d/disk.json
check "a request starts it again" cowctl list
# It answers a moment before it says that it is ready; the job is waited for.
check "which systemd knows" bash -c 'systemctl start cowd && systemctl is-active cowd'
check "read again" read_some
check "detach" cowctl detach disk
check "failures are in the journal by their id" bash -c \
	'id=$(cowctl detach nothing 2>&1 | grep -oE "e-[0-9a-f]{8}"); journalctl --sync; journalctl COWD_ERROR_ID=$id | grep -q nothing'
# open-iscsi's programs are children of cowd, which may do little.
unit=/tmp/unit iqn=iqn.2003-01.org.example:far
truncate -s 16M $unit
tgtd --iscsi portal=127.0.0.1:3260
for ((i = 0; i < 100; i++)); do
	tgtadm --op show --mode sys >/dev/null 2>&1 && break
	sleep 0.1
done
tgtadm --lld iscsi --op new --mode target --tid 1 -T $iqn
tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b $unit
tgtadm --lld iscsi --op bind --mode target --tid 1 -I ALL
check "attach a unit of an iSCSI target" cowctl attach --name far "raw:iscsi://127.0.0.1/${iqn/:/%3A}/1"
check "write to it" dd if=/dev/urandom of=/dev/mapper/far bs=1M count=4 oflag=direct conv=fsync status=none
check "it is there" cmp -n 4194304 /dev/mapper/far $unit
check "detach it" cowctl detach far
check "it is logged out of" bash -c \
	'for i in {1..100}; do [[ -e /sys/class/iscsi_session/session1 ]] || exit 0; sleep 0.2; done; exit 1'

# cowd-nbd outlives cowd; killed, it is started again, and looks after the device.
until_true() { for ((i = 0; i < 200; i++)); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; return 1; }
serve() { qemu-nbd --persistent --shared=4 -f raw -x far -p 10810 -b 127.0.0.1 --pid-file /tmp/nbd.pid --fork $unit; }
another_keeper() { [[ $(pgrep -x cowd-nbd) =~ ^[0-9]+$ && $(pgrep -x cowd-nbd) != "$1" ]]; }
serve
check "attach an NBD export" cowctl attach --name far raw:nbd://127.0.0.1:10810/far
keeper=$(pgrep -x cowd-nbd)
kill -KILL "$keeper"
check "its keeper is started again" until_true another_keeper "$keeper"
keeper=$(pgrep -x cowd-nbd)
server=$(cat /tmp/nbd.pid)
kill -KILL "$server"
tail --pid="$server" -f /dev/null
dd if=/dev/mapper/far of=/dev/null bs=1M count=8 iflag=direct status=none &
reading=$!
serve
wait $reading
check "it connects again" test $? = 0
kill -KILL "$keeper"
check "and is started again after that" until_true another_keeper "$keeper"
check "read from it" dd if=/dev/mapper/far of=/dev/null bs=1M iflag=direct status=none
check "one device only is connected" test "$(cat /sys/block/nbd*/backend | wc -l)" = 1
check "detach it" cowctl detach far
check "its keeper ends" until_true eval "! pgrep -x cowd-nbd"
check "the device is free" until_true eval '! cat /sys/block/nbd*/backend'
kill "$(cat /tmp/nbd.pid)"

# Bases that hold complete volume groups, which are no business of this host's, in a file and over
# nbd. LVM has the line of the doctor's from above.
make_group() { # FILE GROUP
	local loop found
	truncate -s 64M "$1" && loop=$(losetup -f --show "$1") || return
	vgcreate -qq -y "$2" "$loop" && lvcreate -qq -y -an -Zn -Wn -n root -L 8M "$2"
	found=$(pvs --noheadings -o vg_name 2>/dev/null | grep -cw "$2")
	vgchange -qq -an "$2"
	losetup -d "$loop"
	[[ $found == 1 ]]
}
no_group() { ! pvs --noheadings -o vg_name 2>/dev/null | grep "$1" && ! dmsetup ls | grep "^$1-"; }
hidden() { # DISK
	[[ $(readlink -f "/dev/dmu/$1") == "/dev/$1" ]] && ! udevadm info "/dev/$1" | grep ID_FS_
}
check "LVM finds a group behind a loop device of others" make_group /tmp/group1 infile
check "and another" make_group /tmp/group2 onnbd
qemu-nbd --persistent --shared=4 -f raw -x group -p 10811 -b 127.0.0.1 --pid-file /tmp/nbd.pid --fork /tmp/group2
check "a store over the file" cowctl create dscow:/tmp/top1:/tmp/group1
check "a store over the export" cowctl create dscow:/tmp/top2:nbd://127.0.0.1:10811/group 64M
check "attach the one" cowctl attach --name one dscow:/tmp/top1:/tmp/group1
check "attach the other" cowctl attach --name two dscow:/tmp/top2:nbd://127.0.0.1:10811/group
udevadm settle
nbd=$(grep -l "^cowd " /sys/block/nbd*/backend | cut -d / -f 4)
for file in /tmp/group1 /tmp/top1 /tmp/top2; do
	loop=$(losetup -j "$file" -n -O NAME)
	check "udev keeps LVM off $file" hidden "${loop#/dev/}"
done
check "and off the export" hidden "$nbd"
check "LVM does not see the group in the file" no_group infile
check "nor the one of the export" no_group onnbd

# No cowd, and none to come, and a server that hangs.
old=$(pid)
systemctl mask cowd
kill -KILL "$old"
tail --pid="$old" -f /dev/null
kill -STOP "$(cat /tmp/nbd.pid)"
check "lvs does not wait for devices without a cowd" timeout 60 lvs
check "nor does pvs" timeout 60 pvs
kill -CONT "$(cat /tmp/nbd.pid)"
systemctl unmask cowd
systemctl reset-failed cowd cowd.socket
check "cowd serves them again" systemctl start cowd.socket cowd
check "read the one" dd if=/dev/mapper/one of=/dev/null bs=1M iflag=direct status=none
check "read the other" dd if=/dev/mapper/two of=/dev/null bs=1M iflag=direct status=none
check "detach the one" cowctl detach one
check "detach the other" cowctl detach two
# Who sets up a loop device of the same number has a device of his own.
loop=$(losetup -f --show /tmp/group1)
udevadm settle
check "what others put behind a loop device is theirs" test ! -e "/dev/dmu/${loop#/dev/}"
vgchange -qq -an infile
losetup -d "$loop"
kill "$(cat /tmp/nbd.pid)"

# Stores in files where nothing else is said.
check "there is a directory for transient stores" test "$(stat -c %a:%U /var/lib/cowd)" = 700:root
check "a transient store in it" cowctl attach --name passing dscow:transient@/var/lib/cowd:/tmp/group1
check "detach it" cowctl detach passing
check "nothing of it is left" test -z "$(ls -A /var/lib/cowd)"

check "stop for good" systemctl stop cowd.socket cowd
check "the socket goes with it" test ! -e /run/cowd/control.sock
# The hardening's score, a tenth of it: less is better, and more than this a step back.
check "the hardening is as good as it was" systemd-analyze security --no-pager --threshold=32 cowd
exit $((failures > 0))
