# SPDX-License-Identifier: GPL-2.0-or-later
# What a power cut leaves, from a log of all writes (tests/power-cut/run).

TEST_TOOLS += logreplay without-flush.so
logreplay_SRCS           := tests/power-cut/logreplay.cc
without-flush.so_SRCS    := tests/power-cut/without_flush.c
without-flush.so_LDFLAGS := -shared

# The same with the kernel's log of writes, in one machine.
KERNEL_TESTS      += tests/power-cut/log-writes.sh
LONG_KERNEL_TESTS += tests/power-cut/many-log-writes.sh
log-writes.sh_TIMEOUT      := 600
many-log-writes.sh_TIMEOUT := 14400
TEST_TOOLS += syncload
syncload_SRCS   := tests/power-cut/syncload.cc tests/system/pattern.cc
syncload_LDLIBS := -ldevmapper
