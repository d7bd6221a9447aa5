# SPDX-License-Identifier: GPL-2.0-or-later
# The simulated disk, for unit tests of anything that takes a Disk.

sim-sources := tests/sim/sim_disk.cc
# The kernel and a guest over it, for formats that hand out space.
kernel-model := tests/sim/kernel_model.cc

UNIT_TESTS    += test-sim test-kernel-model
test-sim_SRCS  = tests/unit/sim.cc $(sim-sources)
test-kernel-model_SRCS = tests/unit/kernel_model.cc tests/sim/dscow_world.cc formats/raw/raw.cc \
  $(kernel-model) $(dscow-sources) $(formats-common) $(sim-sources)

# Uses an image without a kernel.
image-tools := $(addprefix cowd/core/,image_commit.cc image_io.cc image_walk.cc)

# Images of all plugins, used by cowctl's own means.
image-tests := image-io image-chain
UNIT_TESTS  += $(image-tests)
define image-test
$(1)_SRCS = tests/unit/$(subst -,_,$(1)).cc tests/sim/image_world.cc $$(growing-world)
$(1)_LDLIBS := $$(CORE_LDLIBS)
build/tests/unit/$(1): $$(CORE_LIB) | $$(PLUGINS:%=build/plugins/%.so)
endef
$(foreach t,$(image-tests),$(eval $(call image-test,$(t))))

INSTALL_DOCS += docs/reliability.md docs/security.md

# Sessions of cowd on a simulated machine: 60 s; make sim runs it for longer.
UNIT_TESTS += session-sim
session-sim_SRCS = tests/sim/session_sim.cc tests/sim/session_world.cc tests/sim/session_kernel.cc \
  tests/sim/virtual_time.cc $(kernel-model) $(sim-sources)
session-sim_USES := libdmu
session-sim_LDLIBS := $(DAEMON_LDLIBS)
session-sim_TIMEOUT := 300
build/tests/unit/session-sim: $(DAEMON_LIB) $(CORE_LIB) | $(PLUGINS:%=build/plugins/%.so)
