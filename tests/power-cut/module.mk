# SPDX-License-Identifier: GPL-2.0-or-later
# What a power cut leaves, from a log of all writes (tests/power-cut/run).

TEST_TOOLS += logreplay without-flush.so
logreplay_SRCS           := tests/power-cut/logreplay.cc
without-flush.so_SRCS    := tests/power-cut/without_flush.c
without-flush.so_LDFLAGS := -shared
