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
transient-tool_SRCS   := tests/system/transient_tool.cc
transient-tool_USES   := libdmu
transient-tool_LDLIBS := $(DAEMON_LDLIBS)
build/tests/kernel/transient-tool: $(DAEMON_LIB) $(CORE_LIB)
transient-stores.sh_TIMEOUT := 900
