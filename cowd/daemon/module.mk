# SPDX-License-Identifier: GPL-2.0-or-later
# cowd, and what its unit tests link of it.

DAEMON_SRCS := $(filter-out cowd/daemon/main.cc,$(sort $(wildcard cowd/daemon/*.cc)))
DAEMON_LIB := build/obj/cowd/daemon/libcowddaemon.a
# The library comes after the archives that need it; NAME_USES puts it before them.
DAEMON_LDLIBS := $(DAEMON_LIB) $(CORE_LDLIBS) build/lib/libdmu.so -lboost_log -lboost_thread -lboost_system -lsystemd -lpthread

$(DAEMON_LIB): $(DAEMON_SRCS:%.cc=build/obj/%.o)
	$(call say,AR,$@)
	$(quiet)rm -f $@ && ar rcs $@ $^

-include $(DAEMON_SRCS:%.cc=build/obj/%.d)

BINS += cowd
cowd_SRCS := cowd/daemon/main.cc
cowd_USES := libdmu
cowd_LDLIBS := $(DAEMON_LDLIBS)
cowd_DIR := sbin
build/bin/cowd: $(DAEMON_LIB) $(CORE_LIB)
INSTALL_DOCS += docs/configuration.md docs/control-protocol.md
MAN_PAGES += docs/man/cowd.8 docs/man/cowd.toml.5
