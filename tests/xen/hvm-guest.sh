#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A fully virtualised guest, which is served by its device model until it has drivers
# of its own: its emulated IDE disk is a dscow disk.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

KIB=65536
tear_down() { systemctl stop cowd.socket cowd; }

volumes base=64M cow=80M
need guestdisk write /dev/vg/base 3 0 "$KIB"
sum=$(sum_of /dev/vg/base)
# Not so in the lab's root: Xen's service would start one at each boot.
need chmod a+x /usr/libexec/xen-qemu-system-i386
need systemctl start cowd.socket cowd
need cowctl create dscow:/dev/vg/cow:/dev/vg/base
before=$(leftovers)
mark h
if check "xl create h" xl create "$TOP/xl-config-examples/hvm.cfg" 'name="h"' 'vcpus=1' \
	"kernel=\"$BOOT/vmlinuz\"" "ramdisk=\"$BOOT/guest\"" \
	'extra="console=hvc0 quiet loglevel=4 panic=1 mitigations=off cryptomgr.notests=1 xen_emul_unplug=never"'; then
	BOOT_SECONDS=240 booted h || exit
	in_guest h size sda $((KIB * 2))
	in_guest h verify sda 3 0 "$KIB"
	in_guest h scatter sda 8 100 "$KIB"
	in_guest h scattered sda 8 100 "$KIB"
	in_guest h poweroff
	gone h 60
fi
same_leftovers "nothing is left of it" "$before" "cowd's threads"
check "what it wrote is in its store" cowctl attach --name again dscow:/dev/vg/cow:/dev/vg/base &&
	check "all of it" guestdisk scattered /dev/mapper/again 8 100 "$KIB"
check "detach" cowctl detach again
check "the base is as it was" test "$(sum_of /dev/vg/base)" = "$sum"
