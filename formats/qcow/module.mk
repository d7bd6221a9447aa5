# SPDX-License-Identifier: GPL-2.0-or-later

qcow-sources := $(addprefix formats/qcow/,check.cc commit_base.cc create.cc header.cc info.cc \
  open.cc rebase.cc tables.cc)

PLUGINS    += qcow
qcow_SRCS   = formats/qcow/plugin.cc $(qcow-sources) $(growing-sources) $(formats-inflate) $(formats-common)
qcow_MAP    = formats/common/plugin.map
qcow_LDLIBS = -lz

qcow-tests  := qcow-format qcow-image
UNIT_TESTS  += $(qcow-tests)
define qcow-test
$(1)_SRCS    = tests/unit/$(subst -,_,$(1)).cc formats/raw/raw.cc $$(qcow-sources) $$(growing-sources) $$(formats-inflate) \
  $$(growing-world) $$(formats-common)
$(1)_LDLIBS  = -lz
endef
$(foreach t,$(qcow-tests),$(eval $(call qcow-test,$(t))))

MAN_PAGES    += formats/qcow/cowd-qcow.5
INSTALL_DOCS += docs/qcow.md
