#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What a guest's disk lives through: a save and a restore, and both failing, a save that the
# guest goes on after, a live migration, the death of cowd, its restart as another guest is
# made, and its hanging, being attached and detached as it runs, its guest's end while
# no cowd runs, and the crash of a host, which leaves a store that nobody asks for any more.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

KIB=65536
EXAMPLES=$TOP/xl-config-examples
tear_down() {
	systemctl stop cowd.socket cowd
	umount /srv/small
}

stores() { cowctl stores --json; }
state_of_stores() { stores | grep -o '"state": *"[a-z-]*"' | grep -o '[a-z-]*"$' | tr -d '"' | xargs; }

# restored NAME: its console goes on in another domain.
restored() {
	mark "$1"
	check "xl restore $1" xl restore "$WORK/$1.save" && learn "$1"
}

# The last close comes when blkback lets go, a moment after the guest.
detached() { timeout 30 bash -c "while dmsetup info $1 >/dev/null 2>&1; do sleep 0.2; done"; }

# A transient store goes a moment after its device.
no_stores() {
	timeout 30 bash -c 'until said=$(cowctl stores --json) && [[ $said != *uuid* ]]; do sleep 0.2; done'
}

# wait_for_stores STATES: what they are then, or after 30 s.
wait_for_stores() {
	local end=$((SECONDS + 30))
	until [[ $(state_of_stores) == "$1" ]] || ((SECONDS > end)); do sleep 0.2; done
	state_of_stores
}

volumes golden=64M base=64M cow=80M
need guestdisk write /dev/vg/golden 4 0 "$KIB"
need guestdisk write /dev/vg/base 3 0 "$KIB"
sums=$(sum_of /dev/vg/base)$(sum_of /dev/vg/golden)
need systemctl start cowd
need cowctl create --force dscow:/dev/vg/cow:/dev/vg/base

# --- transient: saved and restored -------------------------------------------
create_from v "$EXAMPLES/transient.cfg" || exit
in_guest v scatter xvda 10 200 "$KIB"
check "its store is in use" test "$(state_of_stores)" = in-use
need mkdir -p /srv/small
need mount -t tmpfs -o size=1M small /srv/small
refuse "a save without room for it" "resuming domain" xl save v /srv/small/v.save
in_guest v scattered xvda 10 200 "$KIB"
in_guest v scatter xvda 9 50 "$KIB"
in_guest v scatter xvda 10 200 "$KIB"
check "its store is still in use after it" test "$(state_of_stores)" = in-use
# Why it goes only Xen knows, and only until it has gone.
check "cowd stops for a while" systemctl stop cowd.socket cowd
check "xl save v as no cowd runs" xl save v "$WORK/v.save"
gone v
check "cowd comes back" systemctl start cowd.socket cowd
check "the device goes" detached vm-v-xvda
check "the store of a guest that was saved meanwhile is kept" test "$(wait_for_stores saved)" = saved
check "what was left of its end is taken away" timeout 10 bash -c 'until [[ ! $(ls -A /run/cowd/ends) ]]; do sleep 0.2; done'
need dd if="$WORK/v.save" of="$WORK/half.save" bs=1M count=100 status=none
refuse "a restore from half of it" "xc_" xl restore "$WORK/half.save"
check "the device goes again" detached vm-v-xvda
check "its store is still kept" test "$(wait_for_stores saved)" = saved
check "cowctl delete refuses what is no store" bash -c '! cowctl delete 00000000-1111-2222-3333-444444444444'
if restored v; then
	check "that its store was found is an event" bash -c 'cowctl events | grep -q store-taken'
	in_guest v scattered xvda 10 200 "$KIB"
	in_guest v scatter xvda 11 50 "$KIB"
	in_guest v scattered xvda 11 50 "$KIB"
	check "its store is in use again" test "$(state_of_stores)" = in-use
	uuid=$(stores | grep -o '"uuid": *"[^"]*"' | cut -d '"' -f 4)
	refuse "and not deleted now" "is in use" cowctl delete "$uuid"
fi

# --- cowd dies under it -------------------------------------------------------
begin v scatter xvda 12 500 "$KIB"
job=$BEGUN
systemctl kill -s KILL cowd
finish_in v "$job" "writes while cowd is killed"
in_guest v scattered xvda 12 500 "$KIB"

# --- a save that it goes on after ----------------------------------------------
check "xl save -c v" xl save -c v "$WORK/v.save"
in_guest v scattered xvda 12 500 "$KIB"
vm=$(xenstore-read "/local/domain/${DOMID[v]}/vm")
sed 's/^name = .*/name = "twin"/' "$EXAMPLES/transient.cfg" >"$WORK/twin.cfg"
echo "uuid = \"${vm#/vm/}\"" >>"$WORK/twin.cfg"
refuse "a restore beside it, which would write to the same disk" "another domain of the same VM" \
	xl restore "$WORK/twin.cfg" "$WORK/v.save"
in_guest v scattered xvda 12 500 "$KIB"
in_guest v scatter xvda 13 50 "$KIB"
check "its store is still in use" test "$(state_of_stores)" = in-use
destroy v
check "no store is left of a guest that went on after its save" no_stores
check "nor is anything mapped" detached vm-v-xvda
create_from v "$EXAMPLES/transient.cfg" || exit
in_guest v verify xvda 4 0 "$KIB"

# --- cowd is restarted under it, and as another one is made ---------------------
begin v scatter xvda 14 500 "$KIB"
job=$BEGUN
mark w
xl_create w "$EXAMPLES/transient.cfg" >"$WORK/w.log" 2>&1 &
creating=$!
check "cowd restarts" systemctl restart cowd
# Whichever came first: a guest with its disk, or a failure that leaves nothing.
if wait "$creating"; then
	booted w && in_guest w verify xvda 4 0 "$KIB"
	destroy w
else
	echo "# w could not be made: $(last_words 3 <"$WORK/w.log")"
	check "no domain is left of it" bash -c '! xl domid w'
fi
finish_in v "$job" "writes while cowd is restarted"
in_guest v scattered xvda 14 500 "$KIB"
check "nothing is mapped for the other" detached vm-w-xvda
check "the one store is that of v" test "$(wait_for_stores in-use)" = in-use

# --- its guest ends while no cowd runs ----------------------------------------
check "cowd stops" systemctl stop cowd.socket cowd
check "xl destroy v" xl destroy v
gone v 60
check "cowd starts" systemctl start cowd.socket cowd
check "a restarted cowd finds that the guest is gone" no_stores
check "nothing is mapped" detached vm-v-xvda

# --- attached and detached as the guest runs, saved, restored; a cowd that hangs -----
# attached NAME VDEV SPECIFICATION
attached() { xl block-attach "$1" "script=block-dmu,vdev=$2,access=w,target=$3"; }
create_from p "$EXAMPLES/transient.cfg" || exit
check "xl block-attach" attached p xvdb dscow:/dev/vg/cow:/dev/vg/base
in_guest p scatter xvdb 20 100 "$KIB"
in_guest p scattered xvdb 20 100 "$KIB"
check "xl block-attach of a transient disk" attached p xvdc dscow:transient@vg:/dev/vg/golden
in_guest p verify xvdc 4 0 "$KIB"
in_guest p scatter xvdc 21 100 "$KIB"
check "it has a store of its own" test "$(state_of_stores)" = "in-use in-use"
check "xl block-detach of it" xl block-detach p xvdc
check "its store goes with it" test "$(wait_for_stores in-use)" = in-use
check "xl save p" xl save p "$WORK/p.save"
gone p
restored p || exit
in_guest p scattered xvdb 20 100 "$KIB"
# systemd would end it, and the next one serve what was asked for meanwhile.
need systemctl service-watchdogs no
systemctl kill -s STOP cowd
began=$EPOCHREALTIME
check "xl block-detach as cowd hangs" xl block-detach p xvdb
took=$(since "$began")
check "it took $took ms, and may 8 s" test "$took" -lt 8000
began=$EPOCHREALTIME
refuse "xl block-attach as cowd hangs" "xvdd" attached p xvdd dscow:transient@vg:/dev/vg/golden
took=$(since "$began")
check "it took $took ms, and may 35 s" test "$took" -lt 35000
systemctl kill -s CONT cowd
need systemctl service-watchdogs yes
check "the disk is detached" detached vm-p-xvdb
check "the one that was given up is not there" detached vm-p-xvdd
check "nor is a store of it" test "$(wait_for_stores in-use)" = in-use
check "cowctl check finds nothing wrong with it" cowctl check dscow:/dev/vg/cow:/dev/vg/base

# --- a saved one that is not wanted any more -----------------------------------
check "xl save p again" xl save p "$WORK/p.save"
gone p
uuid=$(stores | grep -o '"uuid": *"[^"]*"' | cut -d '"' -f 4)
check "cowctl delete" cowctl delete "$uuid"
check "it is gone" no_stores

# --- live migration, to this very host: add for the new domain, then remove for the old one --
# PV guests do not migrate in Debian's Xen, which has no shadow page tables. A PVH guest's pages are
# write-protected meanwhile, and one in eight or so then dies in the emulator of a triple fault, which
# is nothing that a disk could do to it: such a one does not count, and another is made.
triple_faults() { xl dmesg | grep -c 'Triple fault'; }
made() {
	create_from m "$EXAMPLES/transient.cfg" 'type="pvh"' 'tsc_mode="native"' &&
		check "m gets a persistent disk" attached m xvdb dscow:/dev/vg/cow:/dev/vg/base &&
		in_guest m scatter xvda 30 100 "$KIB"
}
migrated() {
	local said job
	old=${DOMID[m]}
	begin m '&' sh 'until [ -e /run/moved ]; do guestdisk scatter /dev/xvdb 32 400 65536 || exit; done'
	job=$BEGUN
	CONSOLE[m]=m--incoming
	POSITION[m]=0
	rm -f "$(console_of m)"
	touch "$(console_of m)"
	said=$(xl migrate -s '' m 'exec xl migrate-receive' 2>&1) || {
		WHY="xl migrate: $(last_words 6 <<<"$said")"
		return 1
	}
	learn m || {
		WHY="it is gone"
		return 1
	}
	begin m sh 'touch /run/moved'
	finish m "$job" || {
		WHY="its writes: $SAID"
		return 1
	}
}
# Its xl makes it anew as it "reboots".
unmade() {
	local id
	unset 'CONSOLE[m]'
	POSITION[m]=$1
	await m 'guest: ready' 90
	for id in $(xl list | awk '$1 ~ /^m(--incoming)?$/ { print $2 }'); do
		xl destroy "$id"
		until_gone "$id"
	done
	detached vm-m-xvda && detached vm-m-xvdb
}
made || exit
in_guest m scattered xvdb 20 100 "$KIB"
refuse "a migration to where nobody is" "migration receiver" xl migrate -s '' m 'exec false'
in_guest m scattered xvda 30 100 "$KIB"
for try in {1..6}; do
	faults=$(triple_faults) said=$(stat -c %s "$(console_of m)")
	if migrated; then
		ok "m migrates as it writes"
		break
	elif ((try == 6 || faults == $(triple_faults))); then
		not_ok "m migrates as it writes" "$WHY"
		exit
	fi
	echo "# m died of the emulator as it migrated: $WHY"
	unmade "$said" && made || exit
done
check "m is another domain" test "${DOMID[m]}" != "$old"
in_guest m scattered xvdb 32 400 "$KIB"
in_guest m scattered xvda 30 100 "$KIB"
check "its store is in use all the same" test "$(state_of_stores)" = in-use
check "each disk is one device" test "$(dmsetup ls | grep -c '^vm-m-')" = 2
check "and has one user" test "$(cowctl vbd | grep -c "backend/vbd/${DOMID[m]}/")$(cowctl vbd | grep -c "backend/vbd/$old/")" = 20
unset 'CONSOLE[m]'
mark m
check "xl reboot m" xl reboot m
booted m || exit
in_guest m verify xvda 4 0 "$KIB"
in_guest m scattered xvdb 32 400 "$KIB"
destroy m
check "its disks go with it" detached vm-m-xvdb
check "no store is left" no_stores

# --- what a crash leaves ----------------------------------------------------------
check "cowd stops for good" systemctl stop cowd.socket cowd
host=$(cat /etc/machine-id)
need lvcreate -q -q -y -W n -L 8M -n cowd-left --addtag cowd.transient --addtag "cowd.host=$host" \
	--addtag cowd.store=12345678-1234-1234-1234-123456789abc --addtag cowd.boot=another vg
need dd if=/dev/zero of=/dev/vg/cowd-left bs=1M count=1 status=none
need lvcreate -q -q -y -W n -L 8M -n cowd-theirs --addtag cowd.transient --addtag cowd.host=other \
	--addtag cowd.store=12345678-1234-1234-1234-123456789abd --addtag cowd.boot=another vg
check "cowd starts once more" systemctl start cowd.socket cowd
check "the store of a host that crashed goes" timeout 30 bash -c \
	'while lvs vg/cowd-left >/dev/null 2>&1; do sleep 0.2; done'
check "another host's is left alone" lvs vg/cowd-theirs
check "and is listed as foreign" test "$(state_of_stores)" = foreign
lvremove -q -q -y vg/cowd-theirs >/dev/null

check "the bases are as they were" test "$(sum_of /dev/vg/base)$(sum_of /dev/vg/golden)" = "$sums"
