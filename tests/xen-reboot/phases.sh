#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A guest that boots what pygrub finds on its disk; then the host is rebooted under its
# guests: xendomains saves them as it goes down and restores them as it comes up; then it
# crashes under them. This runs once before each and once after.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/../xen/lib.sh"

KIB=65536
EXAMPLES=$TOP/xl-config-examples
REBOOTED=/var/lib/lab-rebooted
CRASHED=/var/lib/lab-crashed
VG=vg
tear_down() { systemctl stop cowd.socket cowd; }

no_stores() {
	timeout 30 bash -c 'until said=$(cowctl stores --json) && [[ $said != *uuid* ]]; do sleep 0.2; done'
}

# With pygrub, domain 0 has the disk for a while.
pygrub() {
	local left
	modprobe xen-blkfront
	left=$(leftovers)
	refuse "a disk that nothing can be booted from" "bootloader" xl create "$EXAMPLES/pygrub.cfg" 'name="g"'
	same_leftovers "nothing is left of it" "$left" "cowd's threads"
	need mount /dev/vg/base /mnt
	need mkdir -p /mnt/boot/grub
	need cp /lab/boot/vmlinuz /lab/boot/guest /mnt/boot
	cat >/mnt/boot/grub/grub.cfg <<-'END'
		set default=0
		menuentry "guest" {
		    linux /boot/vmlinuz console=hvc0 quiet loglevel=4 panic=1 rodata=off mitigations=off tsc=reliable cryptomgr.notests=1
		    initrd /boot/guest
		}
	END
	need umount /mnt
	need cowctl create --force dscow:/dev/vg/cow:/dev/vg/base
	mark g
	if check "xl create by pygrub" xl create "$EXAMPLES/pygrub.cfg" 'name="g"' && booted g; then
		ok "what it found boots"
		in_guest g mount xvda
		in_guest g sh 'test -s /mnt/xvda/boot/vmlinuz && umount /mnt/xvda'
		in_guest g poweroff
		gone g
	fi
	same_leftovers "nothing is left of it either" "$left" "cowd's threads"
}

before_it() {
	volumes base=64M golden=64M cow=80M
	need mke2fs -q -F -t ext4 -E nodiscard /dev/vg/base
	need guestdisk write /dev/vg/golden 4 0 "$KIB"
	sum_of /dev/vg/golden >"$REBOOTED"
	need systemctl enable --now cowd.socket cowd
	need systemctl enable --now xendomains
	need cowctl create dscow:/dev/vg/cow:/dev/vg/base
	pygrub
	create_from p "$EXAMPLES/persistent.cfg" || exit
	in_guest p mount xvda || exit
	in_guest p append xvda 5 30
	in_guest p fsload xvda 6 2 100
	# Some of it is in the guest's memory only.
	in_guest p tree xvda
	echo "$SAID" >>"$REBOOTED"
	create_from v "$EXAMPLES/transient.cfg" || exit
	in_guest v scatter xvda 10 200 "$KIB"
	refuse "cowctl doctor says what LVM lacks" "global_filter" cowctl doctor
	sed -i 's#^devices {#&\n\tglobal_filter = [ "r|^/dev/dmu/|" ]#' /etc/lvm/lvm.conf
	check "and is content with it" cowctl doctor
	trap - EXIT
	echo "# the host reboots"
	systemctl reboot
	sleep 600
}

after_it() {
	local sum tree
	{ read -r sum && read -r tree; } <"$REBOOTED"
	# It is being started already; this waits for the end of that.
	check "xendomains has restored them" timeout 240 systemctl start xendomains
	# They are to be found by what they say, not by what is on their disks alone.
	for name in p v; do
		mark "$name"
		check "$name runs again" xl domid "$name" && learn "$name" || exit
	done
	in_guest p appended xvda 5 30
	in_guest p tree xvda
	check "the tree is as it was" test "$SAID" = "$tree"
	in_guest v scattered xvda 10 200 "$KIB"
	in_guest v scatter xvda 11 50 "$KIB"
	in_guest v scattered xvda 11 50 "$KIB"
	check "its store is in use" grep -q '"in-use"' <(cowctl stores --json)

	# They go on writing until the host is no more; what was acknowledged is what p said.
	in_guest p append xvda 7 20
	begin p '&' append xvda 8 5000
	begin v '&' scatter xvda 12 5000 "$KIB"
	await p 'guest: 8 acked 9' || not_ok "p goes on writing" "$WHY"
	need systemctl disable xendomains
	echo "$sum" >"$CRASHED"
	sync -f "$CRASHED"
	trap - EXIT
	echo "# the host crashes"
	echo b >/proc/sysrq-trigger
	sleep 600
}

after_crash() {
	local sum
	read -r sum <"$CRASHED"
	check "cowd is up" timeout 60 cowctl list
	check "the store of v is gone without a word from anybody" no_stores
	check "so is its volume" test -z "$(lvs --noheadings -o lv_name vg | grep cowd-)"
	check "cowctl check finds nothing wrong with the disk of p" cowctl check dscow:/dev/vg/cow:/dev/vg/base
	create_from p "$EXAMPLES/persistent.cfg" || exit
	in_guest p mount xvda
	in_guest p appended xvda 5 30
	in_guest p appended xvda 7 20
	in_guest p appended xvda 8 9
	in_guest p umount xvda
	in_guest p fsck xvda
	in_guest p poweroff
	gone p
	check "cowctl check finds nothing wrong" cowctl check dscow:/dev/vg/cow:/dev/vg/base
	create_from v "$EXAMPLES/transient.cfg" && in_guest v verify xvda 4 0 "$KIB"
	destroy v
	check "its store goes with it" no_stores
	check "the golden image is as it was" test "$(sum_of /dev/vg/golden)" = "$sum"
}

if [[ -e $CRASHED ]]; then after_crash; elif [[ -e $REBOOTED ]]; then after_it; else before_it; fi
