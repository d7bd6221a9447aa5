# SPDX-License-Identifier: GPL-2.0-or-later
# The whole column at work: cowd serves dscow disks over LVM in the lab's machine.
# One script a subject; the programs are what they load the disks with.

system-tests := $(sort $(wildcard tests/system/*.sh))
KERNEL_TESTS += $(filter-out tests/system/lib.sh,$(system-tests))

TEST_TOOLS += blockload fsload killer
blockload_SRCS   := tests/system/blockload.cc tests/system/pattern.cc
blockload_LDLIBS := -lpthread
fsload_SRCS      := tests/system/fsload.cc tests/system/fstree.cc
killer_SRCS      := tests/system/killer.cc
killer_LDLIBS    := -lpthread

TEST_TOOLS += transient-tool
transient-tool_SRCS   := tests/system/transient_tool.cc cowd/daemon/transient.cc \
  cowd/daemon/transient_files.cc cowd/daemon/lvm.cc formats/dscow/header.cc \
  formats/dscow/layout.cc formats/common/crc32c.cc formats/common/signatures.cc
transient-tool_LDLIBS := $(CORE_LDLIBS)
build/tests/kernel/transient-tool: $(CORE_LIB)
transient-stores.sh_TIMEOUT := 900
backing-nbd.sh_TIMEOUT := 600
fs-workload.sh_TIMEOUT := 480
no-space.sh_TIMEOUT := 900
backing-iscsi.sh_TIMEOUT := 600
nbd-tls.sh_TIMEOUT := 300
