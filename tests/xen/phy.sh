#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A guest with a plain volume, nothing of ours in between: what holds here is what
# our disks are measured by, and when it fails it is the lab that is broken.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

echo "# first line of the first test: $(cut -d ' ' -f 1 /proc/uptime) s after the start of domain 0"
volumes plain=64M second=16M files=64M
need mke2fs -q -t ext4 /dev/vg/files
config t 'phy:/dev/vg/plain,xvda,w' 'phy:/dev/vg/second,xvdb,r' 'phy:/dev/vg/files,xvdc,w'
before=$(leftovers)

create t || exit
in_guest t size xvda $((64 * 2048))
in_guest t flushes xvda
in_guest t write xvda 7 0 8192
in_guest t verify xvda 7 0 8192
in_guest t scatter xvda 8 200 32768
in_guest t scattered xvda 8 200 32768
in_guest t readonly xvdb
in_guest t sum xvda
check "domain 0 finds what the guest wrote" guestdisk scattered /dev/vg/plain 8 200 32768
check "the sum is the guest's" test "$SAID" = "$(sum_of /dev/vg/plain)"

# A file system, and what it holds after a reboot.
in_guest t mount xvdc
in_guest t fsload xvdc 1 2 100
in_guest t append xvdc 5 20
in_guest t tree xvdc
tree=$SAID
in_guest t umount xvdc
old=${DOMID[t]}
in_guest t reboot
booted t && ok "t boots again"
check "in a domain of its own" test "${DOMID[t]}" != "$old"
in_guest t fsck xvdc
in_guest t mount xvdc ro
in_guest t appended xvdc 5 20
in_guest t tree xvdc
check "the tree is as it was" test "$SAID" = "$tree"

destroy t
same_leftovers "nothing is left behind" "$before"
