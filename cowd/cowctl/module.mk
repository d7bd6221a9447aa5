# SPDX-License-Identifier: GPL-2.0-or-later
BINS += cowctl
cowctl_SRCS   := $(sort $(wildcard cowd/cowctl/*.cc)) cowd/daemon/error_id.cc
cowctl_LDLIBS := $(CORE_LDLIBS)
cowctl_DIR    := sbin

build/bin/cowctl: $(CORE_LIB)

MAN_PAGES           += docs/man/cowctl.8 docs/man/cowd-formats.7
INSTALL_COMPLETIONS += packaging/completion/cowctl

# --- tests of it ---

UNIT_TESTS += cowctl_test tests/unit/cowctl-help tests/unit/cowctl-offline \
  tests/unit/cowctl-images
cowctl_test_SRCS   := tests/unit/cowctl_test.cc cowd/cowctl/output.cc cowd/cowctl/progress.cc \
  cowd/cowctl/host_settings.cc
cowctl_test_LDLIBS := $(CORE_LDLIBS)

# "toy" and the same without a check; the others are core_plugin_test's.
build/tests/unit/plugins/toy.so: toy-flags := -DTOY='"toy"'
build/tests/unit/plugins/nocheck.so: toy-flags := -DTOY='"nocheck"' -DTOY_HAS_NO_CHECK
build/tests/unit/plugins/toy.so build/tests/unit/plugins/nocheck.so: \
    tests/unit/cowctl_plugin/toy.cc formats/plugin.hh build/flags
	@mkdir -p $(@D)
	$(call say,PLUGIN,$@)
	$(quiet)$(CCACHE) $(CXX) $(all-cppflags) $(all-cxxflags) $(toy-flags) -c -o $(@:.so=.o) $<
	$(quiet)$(CXX) -shared -o $@ $(@:.so=.o)

build/tests/unit/cowctl_test: $(CORE_LIB) | build/bin/cowctl $(core-test-plugin-files) \
    build/tests/unit/plugins/toy.so build/tests/unit/plugins/nocheck.so

# It runs qemu-img some hundred times.
cowctl-images_TIMEOUT := 600
