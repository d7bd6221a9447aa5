#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A fully virtualised guest that its firmware boots from a dscow disk, as a PC. (A whole
# one, hvm-guest.sh, takes an emulated machine minutes.)

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

tear_down() { systemctl stop cowd.socket cowd; }

volumes base=64M cow=80M
need guestdisk write /dev/vg/base 3 0 65536
sum=$(sum_of /dev/vg/base)
# Not so in the lab's root: Xen's service would start one at each boot.
need chmod a+x /usr/libexec/xen-qemu-system-i386
need systemctl start cowd.socket cowd
need cowctl create dscow:/dev/vg/cow:/dev/vg/base
before=$(leftovers)
need cowctl attach --name again dscow:/dev/vg/cow:/dev/vg/base

# A boot sector, in the store only: it says so on the serial port for ever.
#   xor ax, ax; mov ds, ax
#   all: mov si, text
#   one: lodsb; test al, al; jz all; mov ah, al
#        mov dx, 0x3fd; full: in al, dx; test al, 0x20; jz full
#        mov dx, 0x3f8; mov al, ah; out dx, al; jmp one
SAYS='the disk boots'
{
	printf '\x31\xc0\x8e\xd8\xbe\x1e\x7c\xac\x84\xc0\x74\xf8\x88\xc4\xba\xfd\x03\xec\xa8\x20\x74\xfb\xba\xf8\x03\x88\xe0\xee\xeb\xe9'
	printf '%s\r\n\0' "$SAYS"
} | dd of="$WORK/sector" bs=510 conv=sync status=none
printf '\x55\xaa' >>"$WORK/sector"
need dd if="$WORK/sector" of=/dev/mapper/again bs=512 oflag=direct status=none
need cowctl detach again

if check "xl create b, from its disk" xl create "$TOP/xl-config-examples/hvm.cfg" 'name="b"' 'vcpus=1'; then
	DOMID[b]=$(xl domid b)
	serial=$(xenstore-read "/local/domain/${DOMID[b]}/serial/0/tty")
	check "its firmware has read it" timeout 120 grep -a -m 1 "$SAYS" "$serial"
	destroy b
fi
same_leftovers "nothing is left of it" "$before" "cowd's threads"
check "the base is as it was" test "$(sum_of /dev/vg/base)" = "$sum"
