# SPDX-License-Identifier: GPL-2.0-or-later
BINS += cowctl
cowctl_SRCS   := $(sort $(wildcard cowd/cowctl/*.cc))
cowctl_LDLIBS := $(CORE_LDLIBS)
cowctl_DIR    := sbin

build/bin/cowctl: $(CORE_LIB)
