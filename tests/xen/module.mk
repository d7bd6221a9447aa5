# SPDX-License-Identifier: GPL-2.0-or-later
# Real guests of a real Xen, in the lab's machine (tests/lab/run --xen). One
# script a subject; the programs are what the guests do.

xen-tests := dmu.sh life.sh disks.sh images.sh hvm.sh loop.sh
phy.sh_TIMEOUT := 240
dmu.sh_TIMEOUT := 480
life.sh_TIMEOUT := 1020
disks.sh_TIMEOUT := 600
images.sh_TIMEOUT := 480
loop.sh_TIMEOUT := 1200
XEN_TESTS += $(addprefix tests/xen/,$(xen-tests))
# phy.sh has nothing of ours: it tells whether the lab is sound.
LONG_XEN_TESTS += tests/xen/phy.sh tests/xen/hvm-guest.sh tests/xen/driver.sh
hvm.sh_TIMEOUT := 240
hvm-guest.sh_TIMEOUT := 900
driver.sh_TIMEOUT := 600

# Static: a guest has no libraries.
TEST_TOOLS += guestdisk guest-fsload
guestdisk_SRCS       := tests/xen/guestdisk.cc tests/system/pattern.cc
guestdisk_LDFLAGS    := -static
guest-fsload_SRCS    := tests/system/fsload.cc tests/system/fstree.cc
guest-fsload_LDFLAGS := -static
