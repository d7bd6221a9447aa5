# SPDX-License-Identifier: GPL-2.0-or-later

vmdk-sources := $(addprefix formats/vmdk/,check.cc create.cc descriptor.cc info.cc open.cc \
  sparse.cc tables.cc top.cc)

PLUGINS    += vmdk
vmdk_SRCS   = formats/vmdk/plugin.cc $(vmdk-sources) $(growing-sources) $(formats-inflate) $(formats-common)
vmdk_MAP    = formats/common/plugin.map
vmdk_LDLIBS = -lz

vmdk-tests  := vmdk-format vmdk-image
UNIT_TESTS  += $(vmdk-tests)
define vmdk-test
$(1)_SRCS    = tests/unit/$(subst -,_,$(1)).cc $$(vmdk-sources) $$(growing-sources) $$(formats-inflate) \
  $$(growing-world) $$(formats-common)
$(1)_LDLIBS  = -lz
endef
$(foreach t,$(vmdk-tests),$(eval $(call vmdk-test,$(t))))

MAN_PAGES    += formats/vmdk/cowd-vmdk.5
INSTALL_DOCS += docs/vmdk.md
