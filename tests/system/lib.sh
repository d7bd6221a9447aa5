# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What the system tests share: a volume group on the lab's disks, a cowd from the
# uninstalled tree, and lines `ok NAME` or `not ok NAME - why`.  Everything is taken
# down again when the script ends, however it ends.

set -uo pipefail
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PATH=$TOP/build/bin:$TOP/build/tests/kernel:$PATH
WORK=$(mktemp -d)
RUN=$WORK/run
VG=dmusystem
MNT=$WORK/mnt
LOG=${LAB_RESULTS:-$WORK}/$(basename "$0" .sh)-cowd.log
mkdir -p "$MNT"
failures=0
cowd_pid=

ok() { echo "ok $1"; }
not_ok() {
	echo "not ok $1 - $2"
	failures=$((failures + 1))
}

# check NAME COMMAND...: the command's last words are the why.
check() {
	local name=$1 said began=$EPOCHREALTIME
	shift
	if said=$("$@" 2>&1); then
		ok "$name"
		echo "# $name: $((${EPOCHREALTIME/./} - ${began/./})) us: $(tail -n 1 <<<"$said")"
	else
		not_ok "$name" "$(tail -n 3 <<<"$said" | tr '\n' ' ')"
		return 1
	fi
}

# ended NAME PID LOG: waits for a child that must have ended well.
ended() {
	if wait "$2"; then
		ok "$1"
	else
		not_ok "$1" "$(tail -n 3 "$3" | tr '\n' ' ')"
	fi
	sed 's/^/# /' "$3"
}

# For what must work before there is anything to test.
need() {
	local said
	said=$("$@" 2>&1) || {
		not_ok "set-up" "$*: $(tail -n 3 <<<"$said" | tr '\n' ' ')"
		tail -n 20 "$LOG" 2>/dev/null | sed 's/^/# cowd: /'
		exit 1
	}
}

ctl() { cowctl --socket "$RUN/control.sock" --plugin-dir "$TOP/build/plugins" "$@"; }

cowd_command=(cowd --foreground --run-dir "$RUN" --plugin-dir "$TOP/build/plugins")

# wait_for_line FILE FROM WORDS: until FILE has them behind byte FROM, or cowd ends.
wait_for_line() {
	local found
	exec {found}< <(exec tail -c "+$(($2 + 1))" -f --pid="$cowd_pid" "$1" 2>/dev/null)
	local tail=$!
	timeout 60 grep -q -m 1 -F "$3" <&"$found"
	local status=$?
	kill "$tail" 2>/dev/null
	exec {found}<&-
	return "$status"
}

start_cowd() {
	local from
	mkdir -p "$RUN"
	touch "$LOG"
	from=$(stat -c %s "$LOG")
	"${cowd_command[@]}" >>"$LOG" 2>&1 &
	cowd_pid=$!
	wait_for_line "$LOG" "$from" "has started" || {
		not_ok "start of cowd" "$(tail -n 3 "$LOG" | tr '\n' ' ')"
		exit 1
	}
}

# end_cowd SIGNAL
end_cowd() {
	kill -"$1" "$cowd_pid"
	wait "$cowd_pid" 2>/dev/null
	local status=$?
	cowd_pid=
	return "$status"
}

# shellcheck source=tests/lvm.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lvm.sh"

# volumes NAME=SIZE...: a fresh volume group with these volumes.
volumes() {
	local each
	modprobe -a dm-userspace loop || exit
	# shellcheck disable=SC2086 # a list
	need lvm_on vgcreate -qq -y "$VG" $LAB_DISKS
	for each in "$@"; do
		need lvm_on lvcreate -qq -y -an -Zn -Wn -n "${each%%=*}" -L "${each#*=}" "$VG"
	done
	need lvm_on vgchange -qq -ay "$VG"
}
vol() { echo "/dev/$VG/$1"; }

# new_store COW BASE NAME MODE GRANULE: created and attached.
new_store() {
	need ctl create --force -o "granule=$5" "dscow:$(vol "$1"):$(vol "$2")"
	need ctl attach --name "$3" --durability "$4" "dscow:$(vol "$1"):$(vol "$2")"
}

# reattach COW BASE NAME MODE
reattach() {
	need ctl detach "$3"
	need ctl attach --name "$3" --durability "$4" "dscow:$(vol "$1"):$(vol "$2")"
}

# A counter of the kernel's, from dmsetup status.
counter() {
	dmsetup status --noflush "$1" | tr ' ' '\n' | grep -x -A 1 "$2" | tail -n 1
}

# until_true SECONDS COMMAND...
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

# What is on the disk, not what is cached above it.
sum_of() { dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d ' ' -f 1; }

unused_devices() {
	local name
	for name in $(dmsetup ls --target userspace | awk '!/^No devices/ { print $1 }'); do
		ctl detach "$name" >/dev/null 2>&1 || dmsetup remove --force "$name" >/dev/null 2>&1
	done
}

clean_up() {
	local status=$?
	exec 2>/dev/null
	findmnt -rno TARGET | grep "^$WORK" | tac | xargs -r umount
	[[ $cowd_pid ]] && unused_devices
	[[ $cowd_pid ]] && end_cowd TERM
	cowd_pid=
	unused_devices
	losetup -D
	lvm_on vgremove -qq -f -y "$VG" >/dev/null
	# shellcheck disable=SC2086 # a list
	wipefs -qa $LAB_DISKS
	rm -rf "$WORK"
	((failures == 0 && status == 0))
	exit
}
trap clean_up EXIT
trap 'exit 130' INT TERM
