# SPDX-License-Identifier: GPL-2.0-or-later

qcow2-sources := $(addprefix formats/qcow2/,check.cc claims.cc commit.cc commit_base.cc create.cc \
  discard.cc give.cc image.cc inflate.cc info.cc layout.cc open.cc rebase.cc refcounts.cc \
  resize.cc resolve.cc shadow.cc snapshot_table.cc snapshots.cc) \
  cowd/core/semaphore.cc $(formats-inflate)

PLUGINS      += qcow2
qcow2_SRCS    = formats/qcow2/plugin.cc $(qcow2-sources) $(formats-common)
qcow2_MAP     = formats/common/plugin.map
qcow2_LDLIBS := -lz -lzstd

qcow2-tests := qcow2-format qcow2-image qcow2-crash qcow2-faults qcow2-differential \
  qcow2-offline
UNIT_TESTS  += $(qcow2-tests)
define qcow2-test
$(1)_SRCS = tests/unit/$(subst -,_,$(1)).cc tests/sim/qcow2_world.cc formats/raw/raw.cc \
  $$(kernel-model) $$(qcow2-sources) $$(formats-common) $$(sim-sources)
$(1)_LDLIBS := -lz -lzstd
endef
$(foreach t,$(qcow2-tests),$(eval $(call qcow2-test,$(t))))
UNIT_TESTS  += tests/unit/qcow2-create
# On images of other formats.
UNIT_TESTS  += qcow2-sequences
qcow2-sequences_SRCS = tests/unit/qcow2_sequences.cc formats/raw/raw.cc $(sort $(qcow-sources) \
  $(qcow2-sources) $(vmdk-sources) $(growing-sources)) $(growing-world) $(formats-common)
qcow2-sequences_LDLIBS := -lz -lzstd

MAN_PAGES    += formats/qcow2/cowd-qcow2.5
INSTALL_DOCS += docs/qcow2.md
# They run qemu-img some hundred times.
qcow2-differential_TIMEOUT := 300
qcow2-format_TIMEOUT       := 300
qcow2-crash_TIMEOUT        := 300
qcow2-offline_TIMEOUT      := 300
