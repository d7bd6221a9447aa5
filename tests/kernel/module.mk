# SPDX-License-Identifier: GPL-2.0-or-later
# Programs that run as root in the lab's machine, against the real module: one a
# rule of the design (K1 ... K14), the cases in them named after it.

kernel-test-support := $(addprefix tests/kernel/,case.cc rescue.cc disks.cc io.cc target.cc cow.cc garbage.cc)
kernel-tests := $(notdir $(basename $(filter-out $(kernel-test-support), \
                  $(wildcard tests/kernel/*.cc))))

KERNEL_TESTS += $(kernel-tests)

define kernel-test
$(1)_SRCS   := tests/kernel/$(1).cc $(kernel-test-support)
$(1)_USES   := libdmu
$(1)_LDLIBS := -lpthread
$(1)_TIMEOUT := 600
endef
$(foreach t,$(kernel-tests),$(eval $(call kernel-test,$(t))))

# One a kind of I/O, for a kernel whose block layer is another.
SECOND_KERNEL_TESTS += device_life k01_owner k03_drain k05_promotion k06_flush k11_suspend k13_citizen k14_no_space
DEBUG_KERNEL_TESTS += $(kernel-tests)

# The fuzzer with a million messages and more.
LONG_KERNEL_TESTS  += tests/kernel/fuzz-channel-long.sh
DEBUG_KERNEL_TESTS += tests/kernel/fuzz-channel-long.sh
fuzz-channel-long.sh_TIMEOUT := 3600
