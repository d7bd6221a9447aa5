#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# dscow disks of a guest, from the examples that an operator gets: a persistent one
# in both spellings, a transient one; what xl says when one cannot be had; the end
# of a guest that still writes.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

KIB=65536 # of the bases
EXAMPLES=$TOP/xl-config-examples
CONF=/usr/local/etc/cowd
tear_down() {
	systemctl stop cowd
	rm -f "$CONF/disks.d/kept.toml"
}

# The failure's id, which an operator must find wherever he looks.
id_of() { grep -oE 'e-[0-9a-f]{8}' <<<"$1" | head -n 1; }

# fails NAME CONFIG WORDS [COMMAND...]: xl create says WORDS and an id, which is to be found in
# the hotplug log, the journal and cowd's events, after COMMAND.
fails() {
	local name=$1 words=$3 guest=$2 said id
	shift 3
	if said=$(xl_create "$guest" "$WORK/$guest.cfg" 2>&1); then
		not_ok "$name" "xl create made a guest of it"
		xl destroy "$guest"
		return
	fi
	if ! grep -qE -- "$words" <<<"$said"; then
		not_ok "$name" "nothing of \"$words\" in: $(last_words 6 <<<"$said")"
		return
	fi
	ok "$name"
	(($# == 0)) || check "$name: $*" "$@"
	id=$(id_of "$said")
	check "$name: an id is in xl's message" test -n "$id" || return
	check "$name: it is in xen-hotplug.log" grep -q "$id" /var/log/xen/xen-hotplug.log
	journalctl --sync
	check "$name: it is in the journal" grep -q . <(journalctl -b -q --no-pager "COWD_ERROR_ID=$id")
	check "$name: it is an event" grep -q "$id" <(cowctl events)
}

# by_hand PARAMS [DOMID]: what libxl does for a disk xvdq of t, or of DOMID, up to its script,
# whose answer becomes ANSWER and FOR_GUEST. libxl would drop the node before one could look at it.
by_hand() {
	local id=${2-${DOMID[t]}} node
	node=backend/vbd/$id/51968
	xenstore-write "/local/domain/0/$node/params" "$1" "/local/domain/0/$node/dev" xvdq \
		"/local/domain/0/$node/mode" w "/local/domain/0/$node/state" 2
	ANSWER=$(XENBUS_TYPE=vbd XENBUS_BASE_PATH=backend XENBUS_PATH=$node \
		timeout 40 /etc/xen/scripts/block-dmu add 2>&1) && ANSWER="it was taken: $ANSWER"
	FOR_GUEST=$(xenstore-read "/local/domain/0/$node/hotplug-error")
	xenstore-rm -t "/local/domain/0/$node"
}
# Nothing but the disk and the id.
says_no_more() {
	local words="is not available; the host's administrator finds the reason as"
	[[ $FOR_GUEST =~ ^"The disk xvdq $words e-"[0-9a-f]{8}\.$ ]] || {
		echo "$FOR_GUEST"
		return 1
	}
}

# flood COUNT: nodes beside those of t's disk, each of which is told to whoever watches.
flood() {
	local number pairs=()
	for ((number = 0; number < $1; number++)); do
		pairs+=("/local/domain/0/backend/vbd/${DOMID[t]}/51712/flood/$number" "$number")
	done
	xenstore-write "${pairs[@]}"
}

volumes base=64M golden=64M cow=80M
need guestdisk write /dev/vg/base 3 0 "$KIB"
need guestdisk write /dev/vg/golden 4 0 "$KIB"
sums=$(sum_of /dev/vg/base)$(sum_of /dev/vg/golden)
need systemctl start cowd
need cowctl create dscow:/dev/vg/cow:/dev/vg/base
before=$(leftovers)

# A persistent disk, the positional spelling.
create_from t "$EXAMPLES/persistent.cfg" || exit
in_guest t size xvda $((KIB * 2))
in_guest t flushes xvda
in_guest t verify xvda 3 0 "$KIB"
in_guest t scatter xvda 8 100 "$KIB"
in_guest t scattered xvda 8 100 "$KIB"
check "cowctl vbd names it" grep -q xvda <(cowctl vbd)

# What it holds is its own.
config other 'dmu:dscow:/dev/vg/cow:/dev/vg/base,raw,xvda,w,script=block-dmu'
fails "a cow in use by another guest" other 'xvda'
config missing 'dmu:dscow:/dev/vg/cow:/dev/vg/nothing,raw,xvda,w,script=block-dmu'
fails "a base that is missing" missing 'xvda'
config full 'dmu:dscow:transient@vg:/dev/vg/golden,raw,xvda,w,script=block-dmu'
need lvm_on lvcreate -qq -y -W n -Z n -l 100%FREE -n fill "$VG"
fails "no room for a store" full 'vg.*(space|room|extents)'
need lvm_on lvremove -qq -y "$VG/fill"
need systemctl stop cowd.socket cowd
fails "cowd does not run" full 'cowd' systemctl start cowd.socket cowd
in_guest t scattered xvda 8 100 "$KIB"

# What the guest is told, who can read its nodes.
by_hand dscow:/dev/vg/cow:/dev/vg/nothing
check "hotplug-error names the disk and the id" says_no_more
check "the host is told what is missing" grep -q /dev/vg/nothing <<<"$ANSWER"
by_hand nbd://user:secret@192.0.2.9/export
check "no server and no password" says_no_more
check "the password is nowhere" bash -c \
	'! { journalctl -b -q --no-pager; cat /var/log/xen/xen-hotplug.log; cowctl events; } | grep secret'
by_hand dscow:/dev/vg/cow:/dev/vg/base
check "nor who has it" says_no_more
by_hand $'\x01\xff\n$(touch /tmp/ran)`touch /tmp/ran`'
check "bytes that are no specification" says_no_more
check "which nobody ran" test ! -e /tmp/ran
by_hand dscow:/dev/vg/cow:/dev/vg/base 4242
check "a domain that is none" says_no_more

# A XenStore that is busy, and one that does not answer.
check "a flood of nodes" flood 500
check "a disk is attached in it" xl block-attach t 'script=block-dmu,vdev=xvdb,access=r,target=raw:/dev/vg/golden'
in_guest t verify xvdb 4 0 "$KIB"
check "and detached" xl block-detach t xvdb
check "the flood goes" xenstore-rm "/local/domain/0/backend/vbd/${DOMID[t]}/51712/flood"
pkill -STOP -x 'o?xenstored'
in_guest t scatter xvda 12 200 "$KIB"
in_guest t scattered xvda 12 200 "$KIB"
check "cowctl list while XenStore does not answer" timeout 5 cowctl list
check "cowctl vbd, too" timeout 5 cowctl vbd
check "a disk of the host is attached" timeout 15 cowctl attach --name third raw:/dev/vg/golden
check "and is detached again" timeout 15 cowctl detach third
check "it still does not answer" bash -c '! timeout 1 xenstore-read domid'
pkill -CONT -x 'o?xenstored'
check "now it does" timeout 10 xenstore-read domid

old=${DOMID[t]}
in_guest t reboot
booted t && ok "t boots again"
check "in a domain of its own" test "${DOMID[t]}" != "$old"
in_guest t scattered xvda 12 200 "$KIB"
in_guest t poweroff
gone t
# cowd starts its threads as it needs them and keeps them: after so few disks their
# number says nothing.
same_leftovers "nothing of the persistent disk is left in use" "$before" "cowd's threads"

# The same disk, the other spelling; destroyed as it writes.
if create_from u "$EXAMPLES/persistent-target.cfg"; then
	in_guest u scattered xvda 12 200 "$KIB"
	begin u '&' sh 'while guestdisk scatter /dev/xvda 9 2000 65536; do :; done'
	ask u say
	destroy u
	same_leftovers "nothing is left of a guest that was destroyed as it wrote" "$before" "cowd's threads"
fi

# Transient: clean each time, and gone with its guest.
if create_from v "$EXAMPLES/transient.cfg"; then
	in_guest v verify xvda 4 0 "$KIB"
	in_guest v scatter xvda 10 100 "$KIB"
	in_guest v scattered xvda 10 100 "$KIB"
	need mkdir -p "$CONF/disks.d"
	printf '%s\n' 'spec = "dscow:transient@vg:/dev/vg/golden"' 'keep_on_reboot = true' >"$CONF/disks.d/kept.toml"
	check "a named disk is attached to it" xl block-attach v '@kept,raw,xvdb,w,script=block-dmu'
	in_guest v appears xvdb
	in_guest v scatter xvdb 11 100 "$KIB"
	in_guest v reboot
	if booted v; then
		ok "v boots again"
		in_guest v verify xvda 4 0 "$KIB"
		in_guest v scattered xvdb 11 100 "$KIB"
		in_guest v poweroff
		gone v
	fi
	same_leftovers "nothing is left of a transient disk" "$before" "cowd's threads"
fi

check "the bases are as they were" test "$(sum_of /dev/vg/base)$(sum_of /dev/vg/golden)" = "$sums"
