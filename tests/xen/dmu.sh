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

# fails NAME CONFIG WORDS: xl create says WORDS and an id, which is to be found in
# the hotplug log, the journal and cowd's events.
fails() {
	local name=$1 said id
	if said=$(xl_create "$2" "$WORK/$2.cfg" 2>&1); then
		not_ok "$name" "xl create made a guest of it"
		xl destroy "$2"
		return
	fi
	if ! grep -qE -- "$3" <<<"$said"; then
		not_ok "$name" "nothing of \"$3\" in: $(last_words 6 <<<"$said")"
		return
	fi
	ok "$name"
	id=$(id_of "$said")
	check "$name: an id is in xl's message" test -n "$id" || return
	check "$name: it is in xen-hotplug.log" grep -q "$id" /var/log/xen/xen-hotplug.log
	journalctl --sync
	check "$name: it is in the journal" grep -q . <(journalctl -b -q --no-pager "COWD_ERROR_ID=$id")
	check "$name: it is an event" grep -q "$id" <(cowctl events)
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

old=${DOMID[t]}
in_guest t reboot
booted t && ok "t boots again"
check "in a domain of its own" test "${DOMID[t]}" != "$old"
in_guest t scattered xvda 8 100 "$KIB"
in_guest t poweroff
gone t
# cowd starts its threads as it needs them and keeps them: after so few disks their
# number says nothing.
same_leftovers "nothing of the persistent disk is left in use" "$before" "cowd's threads"

# The same disk, the other spelling; destroyed as it writes.
if create_from u "$EXAMPLES/persistent-target.cfg"; then
	in_guest u scattered xvda 8 100 "$KIB"
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
