# SPDX-License-Identifier: GPL-2.0-or-later
# The whole column at work: cowd serves dscow disks over LVM in the lab's machine.
# One script a subject; the programs are what they load the disks with.

system-tests := $(sort $(wildcard tests/system/*.sh))
# Minutes of servers that go and come, hundreds of images, of kills, of disks that fail.
long-system-tests := $(addprefix tests/system/,nbd-tls.sh backing-iscsi.sh many-sequences.sh \
  faulty.sh daemon-life.sh many-kills.sh many-faults.sh long-daemon-life.sh)
LONG_KERNEL_TESTS += $(long-system-tests)
KERNEL_TESTS += $(filter-out tests/system/lib.sh $(long-system-tests),$(system-tests))

TEST_TOOLS += blockload blockplay fsload hog killer
blockload_SRCS   := tests/system/blockload.cc tests/system/pattern.cc
blockload_LDLIBS := -lpthread
blockplay_SRCS   := tests/system/blockplay.cc
blockplay_LDLIBS := -lpthread
fsload_SRCS      := tests/system/fsload.cc tests/system/fstree.cc
hog_SRCS         := tests/system/hog.cc
killer_SRCS      := tests/system/killer.cc
killer_LDLIBS    := -lpthread

TEST_TOOLS += transient-tool
transient-tool_SRCS   := tests/system/transient_tool.cc cowd/daemon/transient.cc \
  cowd/daemon/transient_files.cc cowd/daemon/lvm.cc formats/dscow/header.cc \
  formats/dscow/layout.cc formats/common/crc32c.cc formats/common/signatures.cc
transient-tool_LDLIBS := $(CORE_LDLIBS)
build/tests/kernel/transient-tool: $(CORE_LIB)
huge.sh_TIMEOUT := 200
log.sh_TIMEOUT := 200
transient-stores.sh_TIMEOUT := 900
backing-nbd.sh_TIMEOUT := 600
demo.sh_TIMEOUT := 400
daemon-life.sh_TIMEOUT := 400
faulty.sh_TIMEOUT := 400
long-daemon-life.sh_TIMEOUT := 1200
many-faults.sh_TIMEOUT := 1800
many-kills.sh_TIMEOUT := 2400
fs-workload.sh_TIMEOUT := 480
memory.sh_TIMEOUT := 400
no-space.sh_TIMEOUT := 900
backing-iscsi.sh_TIMEOUT := 600
nbd-tls.sh_TIMEOUT := 300
formats.sh_TIMEOUT := 600
poison.sh_TIMEOUT := 400
sequences.sh_TIMEOUT := 400
many-sequences.sh_TIMEOUT := 3600
