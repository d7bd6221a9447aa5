# SPDX-License-Identifier: GPL-2.0-or-later
# Fuzzers, one a format and one a reader of text or headers (tests/fuzz/README). They need clang,
# which nothing else does; all of it goes to build/fuzz/.

FUZZ_CXX     ?= clang++
FUZZ_SECONDS ?= 600

fuzz-formats := raw dscow qcow qcow2 vhd vmdk
fuzz-readers := spec named-disk config control vbd-names vmdk-descriptor vhd-headers dscow-header qcow2-header
fuzzers      := $(fuzz-formats) $(fuzz-readers)

# "function" makes relocations of coroutines that clang 14 itself cannot assemble.
fuzz-sanitize := address,undefined -fno-sanitize=function -fno-sanitize-recover=all
fuzz-cxxflags := -std=c++20 -O1 -gline-tables-only -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,$(fuzz-sanitize) \
  -I. -I$(B) -D_GNU_SOURCE -DBOOST_LOG_DYN_LINK=1 -Wall -Wextra -Wshadow

fuzzed-sources := $(sort $(wildcard formats/*/*.cc) \
  $(addprefix cowd/core/,disk_options.cc errno_name.cc named_spec.cc semaphore.cc spec.cc toml.cc units.cc utf8.cc) \
  tests/sim/kernel_model.cc tests/sim/sim_disk.cc \
  $(addprefix tests/fuzz/,checksums.cc guest.cc input.cc memory_disk.cc neighbours.cc))
# Of cowd itself, for those that read what clients, XenStore and its administrator say.
fuzzed-daemon := $(addprefix cowd/core/,json.cc json_lines.cc) $(addprefix cowd/daemon/,attach_request.cc config.cc \
  control_server.cc error_id.cc event_ring.cc journal_sink.cc log.cc vbd_node.cc)
fuzz-daemons  := config control vbd-names
fuzz-obj       = $(patsubst %.cc,$(B)/fuzz/obj/%.o,$(1))
fuzzed-library := $(B)/fuzz/obj/libfuzzed.a
fuzz-main      = $(call fuzz-obj,$(if $(filter $(1),$(fuzz-formats)),tests/fuzz/image.cc tests/fuzz/mutate.cc, \
                   tests/fuzz/$(subst -,_,$(1)).cc))

$(call fuzz-obj,$(fuzzed-daemon) tests/fuzz/config.cc tests/fuzz/control.cc): fuzz-cxxflags += -Ikmod/include/uapi -Ilibdmu

fuzz-compile = $(quiet)$(CCACHE) $(FUZZ_CXX) $(fuzz-cxxflags) $(1) -MMD -MP -c -o $@ $<

$(B)/fuzz/obj/%.o: %.cc tests/fuzz/module.mk | $(B)/config.h
	@mkdir -p $(@D)
	@command -v $(FUZZ_CXX) >/dev/null || { \
	  echo "$(FUZZ_CXX) is missing. On Debian: apt-get install clang, or: make setup" >&2; exit 1; }
	$(call say,FUZZ,$<)
	$(fuzz-compile)

# All plugins in one program.
$(B)/fuzz/obj/formats/%/plugin.o: formats/%/plugin.cc tests/fuzz/module.mk | $(B)/config.h
	@mkdir -p $(@D)
	$(call say,FUZZ,$<)
	$(call fuzz-compile,-Dcowd_format=$*_format)

$(fuzzed-library): $(call fuzz-obj,$(fuzzed-sources))
	$(quiet)rm -f $@ && ar rcs $@ $^

define fuzzer
$(B)/fuzz/$(1): $(call fuzz-main,$(1)) $(if $(filter $(1),$(fuzz-daemons)),$(call fuzz-obj,$(fuzzed-daemon))) $(fuzzed-library)
	$$(call say,LINK,$$@)
	$$(quiet)$$(FUZZ_CXX) -fsanitize=fuzzer,$(fuzz-sanitize) -o $$@ $$^ \
	  $(if $(filter $(1),$(fuzz-formats)),-Wl$$(comma)-u$$(comma)$(1)_format -Wl$$(comma)--defsym=fuzzed_format=$(1)_format) \
	  $(if $(filter $(1),$(fuzz-daemons)),-lboost_log -lboost_thread -lboost_system -lsystemd) -lz -lzstd -lpthread
endef
$(foreach f,$(fuzzers),$(eval $(call fuzzer,$(f))))

# Inputs from images and back.
$(B)/fuzz/pack: $(B)/fuzz/obj/tests/fuzz/pack.o $(fuzzed-library)
	$(call say,LINK,$@)
	$(quiet)$(FUZZ_CXX) -fsanitize=fuzzer-no-link,$(fuzz-sanitize) -o $@ $^ -lz -lzstd -lpthread

-include $(patsubst %.o,%.d,$(call fuzz-obj,$(fuzzed-sources) $(fuzzed-daemon)) $(foreach f,$(fuzzers),$(call fuzz-main,$(f))) \
  $(B)/fuzz/obj/tests/fuzz/pack.o)

fuzzers: $(fuzzers:%=$(B)/fuzz/%) $(B)/fuzz/pack

# Each for FUZZ_SECONDS; T='NAME...' picks some.
fuzz: all fuzzers
	$(quiet)tests/fuzz/run --seconds $(FUZZ_SECONDS) $(or $(T),$(fuzzers))

# What ever broke one, and three minutes of some, others each day.
check-fuzz: all fuzzers
	$(quiet)tests/fuzz/run --check $(fuzzers)

.PHONY: fuzz fuzzers check-fuzz
