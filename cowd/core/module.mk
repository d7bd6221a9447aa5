# SPDX-License-Identifier: GPL-2.0-or-later
# libcowdcore.a: what cowd, cowctl and their tests share. Not installed. A program
# that uses it says
#   NAME_LDLIBS := $(CORE_LDLIBS)
# and depends on $(CORE_LIB):
#   build/bin/NAME: $(CORE_LIB)

CORE_SRCS := $(sort $(wildcard cowd/core/*.cc))
CORE_LIB := build/obj/cowd/core/libcowdcore.a
CORE_LDLIBS := $(CORE_LIB) -luring -lpthread

$(CORE_LIB): $(CORE_SRCS:%.cc=build/obj/%.o)
	$(call say,AR,$@)
	$(quiet)rm -f $@ && ar rcs $@ $^

-include $(CORE_SRCS:%.cc=build/obj/%.d)

# --- tests of it ---

core-tests := spec_test

UNIT_TESTS += $(core-tests)
spec_test_SRCS := tests/unit/spec_test.cc

$(foreach t,$(core-tests),$(eval $(t)_LDLIBS := $(CORE_LDLIBS)))
$(core-tests:%=build/tests/unit/%): $(CORE_LIB)
INSTALL_DOCS += docs/disk-specification.md
