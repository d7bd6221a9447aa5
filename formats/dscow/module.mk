# SPDX-License-Identifier: GPL-2.0-or-later

dscow-sources := $(addprefix formats/dscow/,bitmap.cc bits.cc check.cc commit_base.cc create.cc header.cc headers.cc \
  identity.cc image.cc info.cc layout.cc open.cc owner.cc page_cache.cc regions.cc uncommitted.cc)

PLUGINS    += dscow
dscow_SRCS  = formats/dscow/plugin.cc $(dscow-sources) $(formats-common)
dscow_MAP   = formats/common/plugin.map

dscow-tests := dscow-bits dscow-format dscow-image dscow-owner dscow-bitmap dscow-crash dscow-faults dscow-model
UNIT_TESTS  += $(dscow-tests) test-plugins
define dscow-test
$(1)_SRCS = tests/unit/$(subst -,_,$(1)).cc tests/sim/dscow_world.cc $$(dscow-sources) $$(formats-common) $$(sim-sources)
endef
$(foreach t,$(dscow-tests),$(eval $(call dscow-test,$(t))))
# Loads build/plugins/*.so as cowd does.
test-plugins_SRCS = tests/unit/plugins.cc $(sim-sources)

MAN_PAGES    += formats/dscow/cowd-dscow.5
INSTALL_DOCS += docs/dscow.md
# It runs cowctl.
build/tests/unit/dscow-model: | build/bin/cowctl build/plugins/dscow.so
