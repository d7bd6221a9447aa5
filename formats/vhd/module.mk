# SPDX-License-Identifier: GPL-2.0-or-later

vhd-sources := $(addprefix formats/vhd/,check.cc create.cc footer.cc info.cc open.cc parent.cc \
  tables.cc)

PLUGINS  += vhd
vhd_SRCS  = formats/vhd/plugin.cc $(vhd-sources) $(growing-sources) $(formats-common)
vhd_MAP   = formats/common/plugin.map

vhd-tests  := vhd-format vhd-image
UNIT_TESTS += $(vhd-tests)
define vhd-test
$(1)_SRCS = tests/unit/$(subst -,_,$(1)).cc $$(vhd-sources) $$(growing-sources) $$(growing-world) \
  $$(formats-common) $$(image-tools)
endef
$(foreach t,$(vhd-tests),$(eval $(call vhd-test,$(t))))

MAN_PAGES    += formats/vhd/cowd-vhd.5
INSTALL_DOCS += docs/vhd.md
