# SPDX-License-Identifier: GPL-2.0-or-later
# libcowdcore.a: what cowd, cowctl and their tests share. Not installed. A program
# that uses it says
#   NAME_LDLIBS := $(CORE_LDLIBS)
# and depends on $(CORE_LIB):
#   build/bin/NAME: $(CORE_LIB)

CORE_SRCS := $(sort $(wildcard cowd/core/*.cc)) formats/common/any_offset.cc
CORE_LIB := build/obj/cowd/core/libcowdcore.a
CORE_LDLIBS := $(CORE_LIB) -luring -lpthread

$(CORE_LIB): $(CORE_SRCS:%.cc=build/obj/%.o)
	$(call say,AR,$@)
	$(quiet)rm -f $@ && ar rcs $@ $^

-include $(CORE_SRCS:%.cc=build/obj/%.d)

# --- tests of it ---

core-tests := spec_test core_test core_control_test core_disk_test core_plugin_test core_child_test core_backing_test \
  core_references_test named_images

UNIT_TESTS += $(core-tests)
$(foreach t,$(core-tests),$(eval $(t)_SRCS := tests/unit/$(t).cc))
$(foreach t,$(core-tests),$(eval $(t)_LDLIBS := $(CORE_LDLIBS)))
$(core-tests:%=build/tests/unit/%): $(CORE_LIB)

# One source, a plugin for each way to be wrong.
core-test-plugins := good wrongabi wrongsize wrongname nosymbol noopen unresolved
core-test-plugin-files := $(core-test-plugins:%=build/tests/unit/plugins/%.so)

$(core-test-plugin-files): build/tests/unit/plugins/%.so: \
    tests/unit/core_plugins/broken.cc formats/plugin.hh build/flags
	@mkdir -p $(@D)
	$(call say,PLUGIN,$@)
	$(quiet)$(CCACHE) $(CXX) $(all-cppflags) $(all-cxxflags) -DPLUGIN=$* -DPLUGIN_$* \
	  -c -o $(@:.so=.o) $<
	$(quiet)$(CXX) -shared -o $@ $(@:.so=.o)

build/tests/unit/core_plugin_test: | $(core-test-plugin-files)

build/tests/unit/core_references_test: | build/plugins/raw.so
build/tests/unit/named_images: | $(addprefix build/plugins/,dscow.so qcow.so qcow2.so vhd.so vmdk.so)

INSTALL_DOCS += docs/disk-specification.md docs/backings.md docs/references.md
