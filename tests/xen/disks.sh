#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Kinds of disks, beside each other: several of one guest, one that two guests read,
# named ones, stores in files, bases on other machines; what may not be shared; the
# end of a guest whose writes wait for space; a frozen server that stops only those
# who need it.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

KIB=65536
EXAMPLES=$TOP/xl-config-examples
SERVER=192.0.2.7 # of the example
UNIT=iscsi://$SERVER/iqn.2004-10.com.example%3Adisk1/1
server=

CONF=/usr/local/etc/cowd # of the installed tree
tear_down() {
	[[ ! $server ]] || kill -CONT "$server"
	systemctl stop cowd.socket cowd
	[[ ! $server ]] || kill "$server"
	pkill -KILL -x tgtd
	umount /srv/small
	ip address del "$SERVER/32" dev lo
	rm -rf "$CONF"/disks.d/web1.toml /srv/images /srv/small
}

attached() { xl block-attach "$1" "script=block-dmu,vdev=$2,access=$3,target=$4"; }
event() { timeout "${2:-30}" bash -c "until cowctl events | grep -q -- '$1'; do sleep 0.2; done"; }
detached() { timeout 30 bash -c "while dmsetup info $1 >/dev/null 2>&1; do sleep 0.2; done"; }

# speed NAME: KiB/s of its direct writes to xvda, over some 10 s.
speed() {
	# shellcheck disable=SC2016 # the guest's
	local step='now() { read -r s _ </proc/uptime; echo "${s%.*}${s#*.}"; }; from=$(now) n=0;'
	step+=' while [ $(($(now) - from)) -lt 1000 ]; do'
	step+=' dd if=/dev/zero of=/dev/xvda bs=64k count=64 oflag=direct 2>/dev/null || exit; n=$((n + 4096));'
	step+=' done; echo $((n * 100 / ($(now) - from)))'
	ask "$1" sh "$step" || not_ok "$1 writes" "$SAID"
	SPEED=$SAID
}

volumes base=64M cow=80M golden=64M cow2=80M shared=16M small=32M third=16M
need guestdisk write /dev/vg/base 3 0 "$KIB"
need guestdisk write /dev/vg/golden 4 0 "$KIB"
need guestdisk write /dev/vg/shared 6 0 16384
need mkdir -p /srv/images /srv/small "$CONF/disks.d"
need mke2fs -q -t ext4 /dev/vg/small
need mount /dev/vg/small /srv/small
need dd if=/dev/vg/golden of=/srv/images/golden.img bs=1M status=none
echo 'spec = "dscow:/dev/vg/cow2:/dev/vg/golden"' >"$CONF"/disks.d/web1.toml
sums=$(sum_of /dev/vg/base)$(sum_of /dev/vg/golden)$(sum_of /dev/vg/shared)$(sum_of /srv/images/golden.img)
need systemctl start cowd.socket cowd
need cowctl create dscow:/dev/vg/cow:/dev/vg/base
need cowctl create dscow:/dev/vg/cow2:/dev/vg/golden
need cowctl create dscow:/srv/small/cow.img:/dev/vg/golden
need ip address add "$SERVER/32" dev lo
need modprobe nbd
qemu-nbd --read-only --persistent --shared=16 -f raw -x golden -b "$SERVER" /dev/vg/golden &
server=$!
need timeout 10 bash -c "until nbd-client -l $SERVER 2>/dev/null | grep -q golden; do sleep 0.1; done"
before=$(leftovers)

# --- several disks of one guest ------------------------------------------------
create_from s "$EXAMPLES/several-disks.cfg" || exit
in_guest s size xvda $((KIB * 2))
in_guest s verify xvda 3 0 "$KIB"
in_guest s verify xvdb 3 0 "$KIB"
in_guest s verify xvdc 6 0 16384
in_guest s readonly xvdc
in_guest s scatter xvda 8 100 "$KIB"
in_guest s scatter xvdb 9 100 "$KIB"
in_guest s scattered xvda 8 100 "$KIB"
in_guest s scattered xvdb 9 100 "$KIB"

# --- a named one, beside it -------------------------------------------------------
if create_from n "$EXAMPLES/named.cfg"; then
	in_guest n verify xvda 4 0 "$KIB"
	in_guest n scatter xvda 10 100 "$KIB"
	check "what s reads, n reads too" attached n xvdc r raw:/dev/vg/shared
	in_guest n appears xvdc
	in_guest n verify xvdc 6 0 16384
	refuse "but none may write it" "xvde" attached n xvde w raw:/dev/vg/shared
	refuse "nor a base in use" "xvdg" attached n xvdg w raw:/dev/vg/base
	refuse "nor may a top become a base" "xvdh" attached n xvdh r raw:/dev/vg/cow

	# phy: asks nobody: what it opens can only be told.
	check "a base given away by phy:" xl block-attach n phy:/dev/vg/base xvdf w
	check "is an event" event foreign-user
	check "and taken back" xl block-detach n xvdf

	# Its file system is full long before the disk is.
	check "a store in a file" attached n xvdd w dscow:/srv/small/cow.img:/dev/vg/golden
	in_guest n appears xvdd
	begin n '&' write xvdd 13 0 "$KIB"
	check "writes wait for space" event no-space 60
	id=$(cowctl events | grep no-space | grep -oE 'e-[0-9a-f]{8}' | tail -n 1)
	journalctl --sync
	check "with an id that is in the journal, too" grep -q . <(journalctl -b -q --no-pager "COWD_ERROR_ID=${id:-none}")
	check "cowctl list says so of the disk" grep -q 'vm-n-xvdd.*waiting-for-space' <(cowctl list)
	ask n say
	check "xl destroy n as they wait" xl destroy n
	gone n 15
	check "its devices are gone" detached vm-n-xvdd
	# Its store could not be marked clean then, and is before it is attached again.
	need lvextend -qq -L +64M /dev/vg/small
	need resize2fs /dev/vg/small
	# Its loop device may go a moment after that.
	check "attached again when there is room" timeout 20 bash -c \
		'until cowctl attach --name again dscow:/srv/small/cow.img:/dev/vg/golden; do sleep 0.5; done'
	check "and detached" cowctl detach again
fi
if create_from n "$EXAMPLES/named-target.cfg"; then
	in_guest n scattered xvda 10 100 "$KIB"
	in_guest n poweroff
	gone n
fi

# --- a base elsewhere, whose server freezes ----------------------------------------
config a "dmu:dscow:transient@vg:nbd://$SERVER/golden,raw,xvda,w,script=block-dmu" \
	"dmu:dscow:transient@vg:nbd://$SERVER/golden,raw,xvdb,w,script=block-dmu"
if create a; then
	in_guest a verify xvdb 4 0 "$KIB"
	check "one connection serves both disks" test "$(pgrep -c -x cowd-nbd)" = 1
	in_guest a scatter xvda 14 50 "$KIB"
	speed s
	free=$SPEED
	speed s
	free="$free and $SPEED"
	kill -STOP "$server"
	begin a '&' scatter xvda 15 200 "$KIB"
	job=$BEGUN
	speed s
	frozen=$SPEED
	speed s
	echo "# figure: s writes $free KiB/s, and $frozen and $SPEED as the server of a's base is frozen"
	check "cowctl list meanwhile" timeout 5 cowctl list
	check "another disk is attached meanwhile" timeout 15 cowctl attach --name third raw:/dev/vg/third
	check "and detached" timeout 15 cowctl detach third
	if create_from f "$EXAMPLES/transient-file.cfg"; then
		in_guest f verify xvda 4 0 "$KIB"
		in_guest f scatter xvda 16 50 "$KIB"
		in_guest f scattered xvda 16 50 "$KIB"
		# Another loop device, of the same file.
		check "a base given away by file:" xl block-attach s file:/srv/images/golden.img xvdg w
		check "is an event, too" event 'foreign-user.*vm-f-xvda'
		check "and taken back" xl block-detach s xvdg
		destroy f
	fi
	check "the server still had not gone on" grep -q '^State:.*T' "/proc/$server/status"
	kill -CONT "$server"
	finish_in a "$job" "its writes go on with the server"
	in_guest a scattered xvda 15 200 "$KIB"
	destroy a
fi
destroy s

# --- bases of an nbd and of an iSCSI server ------------------------------------------
tgt() { tgtadm --lld iscsi "$@"; }
need truncate -s 64M "$WORK/unit"
need guestdisk write "$WORK/unit" 5 0 "$KIB"
unit_sum=$(sha256sum <"$WORK/unit")
tgtd --iscsi "portal=$SERVER:3260"
need timeout 30 bash -c 'until tgtadm --op show --mode sys; do sleep 0.1; done'
need tgt --op new --mode target --tid 1 -T iqn.2004-10.com.example:disk1
need tgt --op new --mode logicalunit --tid 1 --lun 1 -b "$WORK/unit"
need tgt --op bind --mode target --tid 1 -I ALL
check "a store for a base on iSCSI" cowctl create --force "dscow:/dev/vg/cow:$UNIT"
if create_from i "$EXAMPLES/network-bases.cfg"; then
	in_guest i verify xvda 4 0 "$KIB"
	in_guest i verify xvdb 5 0 "$KIB"
	check "one more disk over the same unit" attached i xvdc w "dscow:transient@vg:$UNIT"
	in_guest i appears xvdc
	in_guest i verify xvdc 5 0 "$KIB"
	check "one session serves both" test "$(iscsiadm -m session | wc -l)" = 1
	in_guest i scatter xvda 17 50 "$KIB"
	in_guest i scatter xvdb 18 50 "$KIB"
	in_guest i scatter xvdc 19 50 "$KIB"
	in_guest i scattered xvda 17 50 "$KIB"
	in_guest i scattered xvdb 18 50 "$KIB"
	in_guest i scattered xvdc 19 50 "$KIB"
	in_guest i poweroff
	gone i
fi
check "the unit is as it was" test "$(sha256sum <"$WORK/unit")" = "$unit_sum"
same_leftovers "nothing is left" "$before" $'cowd\'s threads\nlv vg small '
check "the bases are as they were" test \
	"$(sum_of /dev/vg/base)$(sum_of /dev/vg/golden)$(sum_of /dev/vg/shared)$(sum_of /srv/images/golden.img)" = "$sums"
