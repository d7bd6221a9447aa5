# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What the Xen tests share: guests of tests/xen/guest-init, created by xl and
# told over their consoles what to do; a volume group on the lab's disks; lists of
# all that a guest's disks may leave behind.  A test says lines `ok NAME` or
# `not ok NAME - why`.  Everything is taken down when the script ends, however it
# ends.
#
#   volumes base=64M cow=64M        /dev/vg/base, /dev/vg/cow
#   config t 'phy:/dev/vg/base,xvda,w'
#   create t                        xl create, until the guest is ready
#   in_guest t write xvda 7 0 1024  a case: ok t: write xvda 7 0 1024
#   in_guest t poweroff
#   gone t

set -uo pipefail
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PATH=$TOP/build/bin:$TOP/build/tests/kernel:$PATH
NAME=$(basename "$0")
WORK=$(mktemp -d)
RESULTS=${LAB_RESULTS:-$WORK}
BOOT=/lab/boot
VG=vg
failures=0

ok() { echo "ok $1"; }
not_ok() {
	echo "not ok $1 - $2"
	failures=$((failures + 1))
}

last_words() { tail -n "${1:-3}" | tr -d '\r' | tr '\n' ' '; }

# check NAME COMMAND...: the command's last words are the why.
check() {
	local name=$1 said began=$EPOCHREALTIME
	shift
	if said=$("$@" 2>&1); then
		ok "$name"
		echo "# $name: $(since "$began") ms: $(tail -n 1 <<<"$said")"
	else
		not_ok "$name" "$(last_words <<<"$said")"
		return 1
	fi
}

# refuse NAME WORDS COMMAND...: the command must fail, and say WORDS.
refuse() {
	local name=$1 words=$2 said
	shift 2
	if said=$("$@" 2>&1); then
		not_ok "$name" "it was not refused"
	elif grep -qF -- "$words" <<<"$said"; then
		ok "$name"
	else
		not_ok "$name" "nothing of \"$words\" in: $(last_words <<<"$said")"
	fi
}

since() { echo "$(((${EPOCHREALTIME/./} - ${1/./}) / 1000))"; }

# For what must work before there is anything to test.
need() {
	local said
	said=$("$@" 2>&1) || {
		not_ok "set-up" "$*: $(last_words <<<"$said")"
		exit 1
	}
}

# --- volumes ------------------------------------------------------------------

# shellcheck source=tests/lvm.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lvm.sh"

# volumes NAME=SIZE...: in the volume group, which is made for the first ones.
volumes() {
	local each
	if ! lvm_on vgs "$VG" >/dev/null 2>&1; then
		# shellcheck disable=SC2086 # a list
		need lvm_on vgcreate -qq -y "$VG" $LAB_DISKS
	fi
	for each in "$@"; do
		need lvm_on lvcreate -qq -y -Wn -Zn -n "${each%%=*}" -L "${each#*=}" "$VG"
	done
}

# What is on the disk, not what is cached above it.
sum_of() { dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d ' ' -f 1; }

# --- guests -------------------------------------------------------------------

declare -A POSITION DOMID TTY CONSOLE
steps=0
SAID=

# It bears the name that the domain had when it was made (CONSOLE), if that is another.
console_of() { echo "/var/log/xen/console/guest-${CONSOLE[$1]:-$1}.log"; }

# config NAME DISK...: $WORK/NAME.cfg, a PV guest with these disks.
config() {
	local name=$1 disk
	shift
	{
		echo 'type = "pv"'
		echo 'disk = ['
		for disk in "$@"; do echo "  '$disk',"; done
		echo ']'
	} >"$WORK/$name.cfg"
}

# xl_create NAME FILE [SETTING...]: a guest of ours from a configuration as an
# operator would write it; only what it boots is the tests'.  Its first steps may
# be given as steps=STEP:WORD...;STEP...
xl_create() {
	local name=$1 file=$2 each words='' settings=()
	shift 2
	for each in "$@"; do
		case $each in
		steps=*) words=$each ;;
		*) settings+=("$each") ;;
		esac
	done
	xl create "$file" "name=\"$name\"" "kernel=\"$BOOT/vmlinux\"" "ramdisk=\"$BOOT/guest\"" \
		"extra=\"console=hvc0 quiet loglevel=4 panic=1 rodata=off mitigations=off tsc=reliable cryptomgr.notests=1 $words\"" \
		"memory=256" "vcpus=1" "${settings[@]}"
}

# mark NAME: what its console says from here on is to be awaited.
mark() {
	touch "$(console_of "$1")"
	POSITION[$1]=$(stat -c %s "$(console_of "$1")")
}

# learn NAME: its domain id and its console's terminal, new after each boot.
learn() {
	DOMID[$1]=$(xl domid "$1") && TTY[$1]=$(xenstore-read "/local/domain/${DOMID[$1]}/console/tty")
}

# create_from NAME FILE [SETTING...]: a case; until the guest is ready.
create_from() {
	local name=$1 said began=$EPOCHREALTIME
	mark "$name"
	if ! said=$(xl_create "$@" 2>&1); then
		not_ok "xl create $name" "$(last_words 6 <<<"$said")"
		return 1
	fi
	echo "# xl create $name: $(since "$began") ms"
	booted "$name" || return
	echo "# $name is ready: $(since "$began") ms"
	ok "xl create $name"
}
create() {
	local name=$1
	shift
	create_from "$name" "$WORK/$name.cfg" "$@"
}

# booted NAME: until it says that it is ready, after creation or a reboot.
booted() {
	await "$1" 'guest: ready' "${BOOT_SECONDS:-90}" || {
		not_ok "boot of $1" "$WHY"
		return 1
	}
	learn "$1" || {
		not_ok "boot of $1" "it is gone again"
		return 1
	}
}

# await NAME REGEX [SECONDS]: until the guest's console has such a line, which
# becomes LINE, after all lines that were awaited before.  A panic is none.
await() {
	local name=$1 regex=$2 seconds=${3:-60} log tail hit status end
	log=$(console_of "$name")
	end=$((SECONDS + seconds))
	while :; do
		exec {tail_out}< <(exec tail -c "+$((${POSITION[$name]} + 1))" -f "$log")
		tail=$!
		hit=$(timeout "$((end > SECONDS ? end - SECONDS : 1))" grep -a -b -m 1 -E "$regex|Kernel panic" <&"$tail_out")
		status=$?
		kill "$tail" 2>/dev/null
		exec {tail_out}<&-
		[[ ! $hit ]] || break
		if ((status == 124 || SECONDS >= end)); then
			WHY="nothing like '$regex' within $seconds s on its console, which ends: $(last_words 2 <"$log")"
			return 1
		fi
		# Neither ends by itself.
		echo "# $name: tail and grep ended early, with exit status $status, at ${POSITION[$name]} of $(stat -c %s "$log")"
	done
	LINE=${hit#*:}
	POSITION[$name]=$((${POSITION[$name]} + ${hit%%:*} + ${#LINE} + 1))
	LINE=${LINE%$'\r'}
	if [[ $LINE == *"Kernel panic"* ]]; then
		WHY=$LINE
		return 1
	fi
}

# ask NAME STEP WORD...: has the guest do a step; what it said of it becomes SAID.
ask() {
	local name=$1
	shift
	begin "$name" "$@" && finish "$name" "$BEGUN"
}
# begin NAME STEP WORD...: the same without waiting; BEGUN is for finish NAME ID,
# which must be called in the order in which the reports come.
begin() {
	local name=$1
	shift
	BEGUN=$((++steps))
	echo "$BEGUN $*" >"${TTY[$name]}"
}
finish() {
	SAID=
	await "$1" "guest: (not )?ok $2( -|[[:cntrl:]]?\$)" "${STEP_SECONDS:-60}" || {
		SAID=$WHY
		return 1
	}
	[[ $LINE != *" - "* ]] || SAID=${LINE#* - }
	[[ $LINE != *"not ok $2"* ]]
}

# in_guest NAME STEP WORD...: a case.
in_guest() {
	local began=$EPOCHREALTIME
	if ask "$@"; then
		ok "$1: ${*:2}"
		echo "# $1: ${*:2}: $(since "$began") ms${SAID:+: $SAID}"
	else
		not_ok "$1: ${*:2}" "$SAID"
		return 1
	fi
}
# finish_in NAME ID WHAT: a case of a step that was begun.
finish_in() {
	if finish "$1" "$2"; then ok "$1: $3"; else not_ok "$1: $3" "$SAID"; fi
}

# is_gone DOMID: nothing of it in XenStore, and no zombie of it in Xen.
is_gone() { ! xenstore-exists "/local/domain/$1" && ! xl list "$1" >/dev/null 2>&1; }

# until_gone DOMID [SECONDS]
until_gone() {
	local events watch status=1 end=$((SECONDS + ${2:-30})) _
	# The one fires when Xen lets go of a domain, the other when xl has cleaned up.
	exec {events}< <(exec timeout "${2:-30}" xenstore-watch @releaseDomain "/local/domain/$1" 2>/dev/null)
	watch=$!
	while IFS= read -r -t $((end > SECONDS ? end - SECONDS : 1)) _ <&"$events"; do
		if is_gone "$1"; then
			status=0
			break
		fi
	done
	kill "$watch" 2>/dev/null
	exec {events}<&-
	((status == 0)) || is_gone "$1"
}

# gone NAME [SECONDS]: a case.
gone() {
	local began=$EPOCHREALTIME
	if until_gone "${DOMID[$1]}" "${2:-30}"; then
		ok "$1 is gone"
		echo "# $1 is gone: $(since "$began") ms"
	else
		not_ok "$1 is gone" "domain ${DOMID[$1]} is still there after ${2:-30} s: $(xl list 2>&1 | last_words 3)"
		return 1
	fi
}

# destroy NAME: a case.
destroy() {
	check "xl destroy $1" xl destroy "$1" && gone "$1"
}

# --- what is left behind ------------------------------------------------------

cowd_pid() { systemctl show -P MainPID cowd 2>/dev/null; }

# A line for each thing that a guest's disk may leave behind, without what is new
# each time (process ids, domain ids).
leftovers() {
	local pid path
	dmsetup ls 2>/dev/null | awk '!/^No devices/ { print "dm", $1 }' | sort
	lvm_on lvs --noheadings -o vg_name,lv_name,lv_size,lv_tags,lv_active 2>/dev/null | awk '{ $1 = $1; print "lv", $0 }' | sort
	losetup -l -n -O NAME,BACK-FILE | awk '{ print "loop", $0 }' | sort
	for path in /sys/block/nbd*/pid; do
		[[ ! -e $path ]] || echo "nbd $(basename "$(dirname "$path")")"
	done
	iscsiadm -m session 2>/dev/null | awk '{ print "iscsi", $3, $4 }' | sort
	# shellcheck disable=SC2012 # names of ours
	find /run/cowd -printf 'run %P %y\n' 2>/dev/null | sort
	xl list | awk 'NR > 1 && $2 != 0 { print "domain", $1 }' | sort
	for path in /local/domain/0/backend /local/domain/0/backend/vbd /local/domain/0/device /tool/cowd /libxl; do
		xenstore-ls -f "$path" 2>/dev/null | sed -n 's/^\([^ ]*\) = .*/xenstore \1/p' |
			grep -v '^xenstore /libxl/0'
	done | sort -u
	xenstore-list /local/domain | grep -vx 0 | sed 's/.*/xenstore domain/'
	pid=$(cowd_pid)
	if [[ ${pid:-0} != 0 ]]; then
		# Sockets and the like are told apart by kind alone.
		find "/proc/$pid/fd" -type l -printf '%l\n' 2>/dev/null | sed 's/:\[.*\]$//' | sort | uniq -c |
			awk '{ n = $1; $1 = ""; print "cowd has" $0, n }'
		echo "cowd's threads: $(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l)"
	fi
}

# same_leftovers NAME BEFORE [WORDS]: a case; BEFORE is what leftovers said then.
# Lines with WORDS are no matter.  What goes at a disk's last close may take its
# time (lvremove, and once more 5 s later where udev looks at the volume), 40 s at most.  Not all that goes makes an event, and to listen
# for events is to be one connection of cowd's more.
same_leftovers() {
	local difference began=$EPOCHREALTIME end=$((SECONDS + 40))
	until difference=$(differ "$2" "${3:-nothing is of no matter}"); do
		((SECONDS < end)) || break
		sleep 0.5
	done
	if [[ ! $difference ]]; then
		ok "$1"
		echo "# $1: $(since "$began") ms"
	else
		not_ok "$1" "$(grep '^[<>]' <<<"$difference" | tr '\n' ' ')"
	fi
}
differ() {
	diff <(grep -vF "$2" <<<"$1") <(leftovers | grep -vF "$2")
}

# --- taking it down -----------------------------------------------------------

clean_up() {
	local status=$? domain
	exec 2>/dev/null
	if ((failures || status)) && [[ ${LAB_RESULTS-} ]]; then
		"$TOP/tests/lab/xen-state" "$RESULTS/$NAME-xen"
	fi
	for domain in $(xl list | awk 'NR > 1 && $2 != 0 { print $2 }'); do
		xl destroy "$domain"
		until_gone "$domain" 30
	done
	if declare -F tear_down >/dev/null; then tear_down; fi
	lvm_on vgremove -qq -f -y "$VG" >/dev/null
	# shellcheck disable=SC2086 # a list
	wipefs -qa $LAB_DISKS
	rm -rf "$WORK"
	((failures == 0 && status == 0))
	exit
}
trap clean_up EXIT
trap 'exit 130' INT TERM

mkdir -p /var/log/xen/console
