# SPDX-License-Identifier: GPL-2.0-or-later
# cowd, and what its unit tests link of it.

# Of dscow what tells whose a transient store is.
DAEMON_SRCS := $(filter-out cowd/daemon/main.cc,$(sort $(wildcard cowd/daemon/*.cc))) \
  formats/dscow/header.cc formats/dscow/layout.cc formats/common/crc32c.cc formats/common/signatures.cc
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
INSTALL_DOCS += docs/configuration.md docs/control-protocol.md docs/space.md
MAN_PAGES += docs/man/cowd.8 docs/man/cowd.toml.5

# --- tests of it ---

daemon-tests := daemon_logic_test daemon_session_test daemon_device_test daemon_control_test daemon_transient_test \
  daemon_space_test daemon_vbds_test

UNIT_TESTS += $(daemon-tests)
daemon_logic_test_SRCS := tests/unit/daemon_logic_test.cc
daemon_session_test_SRCS := tests/unit/daemon_session_test.cc
daemon_device_test_SRCS := tests/unit/daemon_device_test.cc tests/unit/fake_dm.cc
build/tests/unit/daemon_device_test: | build/plugins/dscow.so build/plugins/raw.so
daemon_control_test_SRCS := tests/unit/daemon_control_test.cc
daemon_transient_test_SRCS := tests/unit/daemon_transient_test.cc
daemon_space_test_SRCS := tests/unit/daemon_space_test.cc
daemon_vbds_test_SRCS := tests/unit/daemon_vbds_test.cc

$(foreach t,$(daemon-tests),$(eval $(t)_LDLIBS := $(DAEMON_LDLIBS)))
$(foreach t,$(daemon-tests),$(eval $(t)_USES := libdmu))
$(daemon-tests:%=build/tests/unit/%): $(DAEMON_LIB) $(CORE_LIB)

# In the lab's machine.
SERVICE_TESTS += tests/kernel/cowd-service.sh
SECOND_KERNEL_TESTS += tests/kernel/cowd-basic.sh
KERNEL_TESTS += tests/kernel/cowd-basic.sh tests/kernel/cowd-refused.sh tests/kernel/cowd-restart.sh
cowd-basic.sh_TIMEOUT := 400
cowd-refused.sh_TIMEOUT := 400
cowd-restart.sh_TIMEOUT := 400
