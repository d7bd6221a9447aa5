# SPDX-License-Identifier: GPL-2.0-or-later
#
# One make for the whole tree.  Each folder says in its module.mk what it has;
# how things are built is said here, once.  All output goes to build/.
#
# What a module.mk may append to (paths are relative to the top):
#
#   LIBS         C libraries: NAME -> build/lib/NAME.so.0, NAME.so, NAME.a
#   BINS         programs that are installed -> build/bin/NAME
#   EXAMPLES     programs that are not -> build/bin/NAME
#   PLUGINS      format plugins -> build/plugins/NAME.so
#   UNIT_TESTS   NAME: a program -> build/tests/unit/NAME (GoogleTest's main is
#                linked in when it has C++ sources); a/path: a script
#   KERNEL_TESTS the same, run as root in the lab's machine
#                -> build/tests/kernel/NAME
#   SECOND_KERNEL_TESTS those of KERNEL_TESTS that are also run on the newer kernel
#   DEBUG_KERNEL_TESTS  and those run on one with KASAN and lockdep (check-long)
#   LONG_KERNEL_TESTS, LONG_XEN_TESTS  as KERNEL_TESTS and XEN_TESTS, in check-long
#   SERVICE_TESTS scripts for a machine with systemd and the tree installed
#   XEN_TESTS    scripts for a domain 0 with the tree installed
#   TEST_TOOLS   programs that kernel tests use -> build/tests/kernel/NAME
#   KMODS        kernel modules: NAME -> build/kmod/<release>/NAME.ko
#   MAN_PAGES    page.1 ... page.8
#   INSTALL_HEADERS INSTALL_UAPI_HEADERS INSTALL_PKGCONFIG INSTALL_UNITS
#   INSTALL_UDEV_RULES INSTALL_CONF INSTALL_COMPLETIONS INSTALL_DOCS
#   INSTALL_TMPFILES INSTALL_MODULES_LOAD INSTALL_DKMS INSTALL_XEN_SCRIPTS
#   INSTALL_XL_EXAMPLES INSTALL_HOOKS
#                files to install; of FILE.in, @prefix@ and the like are
#                replaced first
#
# and what it says about a program, library or plugin NAME:
#
#   NAME_SRCS      its .c and .cc files
#   NAME_USES      our own libraries it links (libdmu)
#   NAME_LDLIBS    other libraries (-lsystemd)
#   NAME_LDFLAGS   more linker flags
#   NAME_MAP       version script of a library or plugin
#   NAME_DIR       bin (default) or sbin
#   NAME_TIMEOUT   seconds a test may take (scripts: the file's base name)
#
# Names are unique over all kinds.

SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-builtin-variables
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

B := build

# Targets that must work before anything is configured, or without it.
UNCONFIGURED := setup check check-long demo dist clean distclean help
needs-config := $(filter-out $(UNCONFIGURED),$(or $(MAKECMDGOALS),all))

ifneq ($(needs-config),)
include config.mk
endif

-include */module.mk cowd/*/module.mk formats/*/module.mk tests/*/module.mk

# --- configure itself -------------------------------------------------------

configure: configure.ac
	@command -v autoconf >/dev/null || { \
	  echo "autoconf is missing. On Debian: apt-get install autoconf, or: make setup" >&2; \
	  exit 1; }
	autoconf -f -o $@ $<

config.mk: config.mk.in configure
	@if test -x config.status; then \
	  ./config.status --recheck && ./config.status; \
	else \
	  ./configure $(CONFIGURE_ARGS); \
	fi
	@touch $@

# --- flags ------------------------------------------------------------------

warnings      := -Wall -Wextra -Wshadow -Wformat=2 -Wvla
cc-warnings   := $(warnings) -Wstrict-prototypes -Wmissing-prototypes
# GCC 12 sees a mismatch between a coroutine frame's own operator new and delete
# that is none (its inliner loses sight of one of them).
cxx-warnings  := $(warnings) -Wnon-virtual-dtor -Woverloaded-virtual \
                 -Wmissing-declarations -Wno-mismatched-new-delete
ifeq ($(WERROR),yes)
warnings-fatal := -Werror
endif

all-cppflags := -I. -I$(B) -Ikmod/include/uapi -Ilibdmu -Icowd \
                -D_GNU_SOURCE -D_FORTIFY_SOURCE=2 $(CPPFLAGS)
common-flags := -fPIC -fstack-protector-strong $(warnings-fatal)
all-cflags   := -std=gnu11 $(CFLAGS) $(common-flags) $(cc-warnings)
all-cxxflags := -std=c++20 $(CXXFLAGS) $(common-flags) $(cxx-warnings) \
                -DBOOST_LOG_DYN_LINK=1
all-ldflags  := -Wl,-z,relro,-z,now -Wl,--as-needed $(LDFLAGS)

# Libraries are found beside the programs, in build/ as when installed.
runpath      = -Wl,--enable-new-dtags,-rpath,'$$$$ORIGIN/$(1)'

quiet := $(if $(V),,@)
say    = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)';)

# --- from sources to objects ------------------------------------------------

objects-of = $(patsubst %.c,$(B)/obj/%.o,$(patsubst %.cc,$(B)/obj/%.o,$($(1)_SRCS)))
linker-of  = $(if $(filter %.cc,$($(1)_SRCS)),$(CXX) $(CXXFLAGS),$(CC) $(CFLAGS))
uses-of    = $(foreach lib,$($(1)_USES),$(B)/lib/$(lib).so)
# Linked by file name; the soname in them is what the program then asks for.
link-libs  = $(call uses-of,$(1)) $($(1)_LDLIBS)

programs := $(BINS) $(EXAMPLES) $(TEST_TOOLS) $(PLUGINS) $(LIBS) \
            $(foreach t,$(UNIT_TESTS) $(KERNEL_TESTS),$(if $(findstring /,$(t)),,$(t)))
ifneq ($(words $(programs)),$(words $(sort $(programs))))
$(error the same name is used twice in the module.mk files: \
  $(foreach p,$(sort $(programs)),$(if $(filter-out 1,$(words $(filter $(p),$(programs)))),$(p))))
endif

# A change of flags builds everything again (ccache makes that cheap). Two makes may run at once.
$(B)/flags: FORCE | $(B)/
	@new=$@.$$$$; echo '$(subst ','\'',$(CC) $(CXX) $(all-cppflags) $(all-cflags) $(all-cxxflags))' > $$new; \
	if cmp -s $$new $@; then rm $$new; else mv $$new $@; fi

# Directories and versions that the code itself must know.
define config-h
/* Generated from config.mk. */
#pragma once
#define DMU_VERSION "$(VERSION)"
#define COWD_PLUGIN_DIR "$(libdir)/cowd/plugins"
#define COWD_SYSCONF_DIR "$(sysconfdir)/cowd"
#define COWD_RUN_DIR "/run/cowd"
#define COWD_STATE_DIR "/var/lib/cowd"
#define COWD_SBIN_DIR "$(sbindir)"
#define XEN_SCRIPT_DIR "$(xenscriptdir)"
endef
$(B)/config.h: config.mk Makefile | $(B)/
	$(call say,GEN,$@)
	@: $(file >$@.new,$(config-h))
	@if cmp -s $@.new $@; then rm $@.new; touch $@; else mv $@.new $@; fi

$(B)/obj/%.o: %.c $(B)/flags | $(B)/config.h
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(quiet)$(CCACHE) $(CC) $(all-cppflags) $(all-cflags) -MMD -MP -c -o $@ $<

$(B)/obj/%.o: %.cc $(B)/flags | $(B)/config.h
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(quiet)$(CCACHE) $(CXX) $(all-cppflags) $(all-cxxflags) -MMD -MP -c -o $@ $<

$(B)/:
	@mkdir -p $@

# Files with @placeholders@.
substitutions := PACKAGE VERSION prefix exec_prefix bindir sbindir libdir \
                 includedir sysconfdir mandir docdir
$(B)/gen/%: %.in config.mk
	@mkdir -p $(@D)
	$(call say,GEN,$@)
	$(quiet)sed $(foreach v,$(substitutions),-e 's|@$(v)@|$($(v))|g') $< > $@
	$(quiet)if test -x $<; then chmod +x $@; fi

generated = $(foreach f,$(1),$(if $(filter %.in,$(f)),$(B)/gen/$(f:.in=),$(f)))

# --- libraries, programs, plugins -------------------------------------------

# library(NAME)
define library
$(B)/lib/$(1).so.0: $(call objects-of,$(1)) $($(1)_MAP) $(call uses-of,$(1))
	@mkdir -p $$(@D)
	$$(call say,LINK,$$@)
	$(quiet)$(call linker-of,$(1)) $(all-ldflags) $($(1)_LDFLAGS) -shared \
	  -Wl,-soname,$(1).so.0 -Wl,-z,defs \
	  $(if $($(1)_MAP),-Wl$(comma)--version-script=$($(1)_MAP)) \
	  -o $$@ $(call objects-of,$(1)) $(call link-libs,$(1))
$(B)/lib/$(1).so: $(B)/lib/$(1).so.0
	$(quiet)ln -sf $(1).so.0 $$@
$(B)/lib/$(1).a: $(call objects-of,$(1))
	@mkdir -p $$(@D)
	$$(call say,AR,$$@)
	$(quiet)rm -f $$@ && ar rcs $$@ $$^
all: $(B)/lib/$(1).so $(B)/lib/$(1).a
endef

# program(NAME, file, path from it to build/lib, more objects)
define program
$(2): $(call objects-of,$(1)) $(call uses-of,$(1))
	@mkdir -p $$(@D)
	$$(call say,LINK,$$@)
	$(quiet)$(call linker-of,$(1)) $(all-ldflags) $(call runpath,$(3)) \
	  $($(1)_LDFLAGS) -o $$@ $(call objects-of,$(1)) \
	  $(call link-libs,$(1)) $(4)
endef

# plugin(NAME)
define plugin
$(B)/plugins/$(1).so: $(call objects-of,$(1)) $(call uses-of,$(1)) $($(1)_MAP)
	@mkdir -p $$(@D)
	$$(call say,LINK,$$@)
	$(quiet)$(call linker-of,$(1)) $(all-ldflags) $($(1)_LDFLAGS) -shared \
	  $(if $($(1)_MAP),-Wl$(comma)--version-script=$($(1)_MAP)) \
	  -o $$@ $(call objects-of,$(1)) $(call link-libs,$(1))
endef

comma := ,

# GoogleTest's main for tests in C++; tests in C have their own.
gtest-for = $(if $(filter %.cc,$($(1)_SRCS)),-lgtest -lgtest_main -lpthread)

is-script    = $(findstring /,$(1))
unit-bins   := $(foreach t,$(UNIT_TESTS),$(if $(call is-script,$(t)),,$(t)))
kernel-bins := $(foreach t,$(KERNEL_TESTS) $(TEST_TOOLS),$(if $(call is-script,$(t)),,$(t)))

$(foreach n,$(LIBS),$(eval $(call library,$(n))))
$(foreach n,$(BINS) $(EXAMPLES),$(eval $(call program,$(n),$(B)/bin/$(n),../lib)))
$(foreach n,$(PLUGINS),$(eval $(call plugin,$(n))))
$(foreach n,$(unit-bins),$(eval $(call program,$(n),$(B)/tests/unit/$(n),../../lib,$(call gtest-for,$(n)))))
$(foreach n,$(kernel-bins),$(eval $(call program,$(n),$(B)/tests/kernel/$(n),../../lib)))

-include $(foreach n,$(programs),$(patsubst %.o,%.d,$(call objects-of,$(n))))

all: $(addprefix $(B)/bin/,$(BINS) $(EXAMPLES)) \
     $(PLUGINS:%=$(B)/plugins/%.so) kmod
tests: $(unit-bins:%=$(B)/tests/unit/%) $(kernel-bins:%=$(B)/tests/kernel/%)

# --- the kernel module, once per kernel -------------------------------------

ifeq ($(KERNEL_SOURCE),auto)
# Installed headers, and those that the lab unpacked.
kernel-dirs := $(dir $(wildcard /lib/modules/*/build/Module.symvers \
  /usr/src/linux-headers-*/Module.symvers \
  $(CURDIR)/$(B)/lab/kernels/*/usr/src/linux-headers-*/Module.symvers))
else
kernel-dirs := $(KERNEL_SOURCE)
endif
kernel-release = $(shell sed -n 's/^\#define UTS_RELEASE "\(.*\)"/\1/p' \
                   $(1)/include/generated/utsrelease.h)
# release=directory; of two names for one release the first is taken.
kernels := $(foreach d,$(kernel-dirs),$(call kernel-release,$(d))=$(d:%/=%))
kernel-releases := $(sort $(foreach k,$(kernels),$(firstword $(subst =, ,$(k)))))
kernel-dir = $(firstword $(patsubst $(1)=%,%,$(filter $(1)=%,$(kernels))))

kmod-sources := $(wildcard kmod/*.c kmod/*.h kmod/Kbuild \
                  kmod/include/uapi/linux/*.h)
ifneq ($(KMODS),)
kmod-outputs := $(foreach r,$(kernel-releases),$(KMODS:%=$(B)/kmod/$(r)/%.ko))
endif

# Compiled in a copy, so that two kernels' objects never meet.
define kernel
$(B)/kmod/$(1)/%: kmod/%
	@mkdir -p $$(@D)
	$(quiet)cp -p $$< $$@ && touch $$@
$(KMODS:%=$(B)/kmod/$(1)/%.ko) &: $(kmod-sources:kmod/%=$(B)/kmod/$(1)/%)
	$$(call say,KMOD,$(1))
	+$(quiet)$(MAKE) --no-print-directory -C $(call kernel-dir,$(1)) \
	  M=$(abspath $(B)/kmod/$(1)) KCFLAGS='$(warnings-fatal)' \
	  $(if $(CCACHE),DEBIAN_KERNEL_USE_CCACHE=y) modules \
	  $(if $(V),V=1,2>&1 | { grep -v '^  \|^make\|^Skipping BTF' || true; })
	@touch -c $(KMODS:%=$(B)/kmod/$(1)/%.ko)

sparse-$(1): $(KMODS:%=$(B)/kmod/$(1)/%.ko)
	$(quiet)tests/sparse $(call kernel-dir,$(1)) $(B)/kmod/$(1)
sparse: sparse-$(1)
endef
$(if $(KMODS),$(foreach r,$(kernel-releases),$(eval $(call kernel,$(r)))))

kmod: $(kmod-outputs)
sparse:

checkpatch:
	$(quiet)tests/checkpatch $(B) $(kmod-sources)

# --- tests ------------------------------------------------------------------

# path[ timeout] a line: what the two runners are to run.
test-path    = $(if $(call is-script,$(2)),$(2),$(B)/tests/$(1)/$(2))
test-lines   = $(foreach t,$(2),$(call test-path,$(1),$(t)):$($(notdir $(t))_TIMEOUT))

check-unit: all tests
	$(quiet)tests/run-unit $(call test-lines,unit,$(sort $(UNIT_TESTS)))

# suite(NAME, options of tests/lab/run, tests): make check-NAME [T='some of them']
define suite
check-$(1): all tests
	$(quiet)tests/run-kernel --suite $(1) $(2) $(LAB_ARGS) -- \
	  $(call test-lines,kernel,$(if $(T),$(filter $(T),$(3)),$(3)))
endef
$(eval $(call suite,kernel,,$(KERNEL_TESTS)))
$(eval $(call suite,second-kernel,--kernel 6.12,$(SECOND_KERNEL_TESTS)))
$(eval $(call suite,newest-kernel,--kernel "$$$$(tests/lab/make-module trixie newest)",$(SECOND_KERNEL_TESTS)))
$(eval $(call suite,service,--systemd --installed,$(SERVICE_TESTS)))
$(eval $(call suite,xen,--xen --installed,$(XEN_TESTS)))
$(eval $(call suite,long-xen,--xen --installed,$(LONG_XEN_TESTS)))
$(eval $(call suite,long-kernel,,$(LONG_KERNEL_TESTS)))
$(eval $(call suite,debug-kernel,--slow 6 --kernel "$$$$(tests/lab/make-debug-kernel)",$(DEBUG_KERNEL_TESTS)))

# The module on every kernel that Debian has for its users, beside the one of make check-kernel.
check-matrix:
	$(quiet)$(MAKE) --no-print-directory check-second-kernel
	$(quiet)$(MAKE) --no-print-directory check-newest-kernel

# Two machines after each other, and one that boots twice.
check-power-cut: all tests
	$(quiet)tests/power-cut/run
check-xen-reboot: all tests
	$(quiet)tests/xen-reboot/run
check-power-cut-without-flush: all tests
	$(quiet)tests/power-cut/run --without-flush

# What takes too long for every change; T='simulation kills' picks rows of tests/run-long.
check-long:
	$(quiet)tests/setup $(if $(filter debug-kernel,$(or $(T),debug-kernel)),--debug-kernel)
	$(quiet)tests/run-long $(T)

# Random sequences, and sequences with the power cut at every moment: unit tests that play some of
# them play so many (tests/sim/sequences.hh), with their files in memory. A sequence takes 20 to 50 ms
# of a processor, half of it qemu-img's: half an hour for all.
SEQUENCES ?= 10000
CRASHES   ?= 30
sequence-tests := $(addprefix $(B)/tests/unit/,qcow2-sequences qcow-image vmdk-image vhd-image \
  dscow-model)
check-long-formats: $(sequence-tests)
	$(quiet)folder=$$(mktemp -d -p /dev/shm cowd-XXXXXX); trap 'rm -rf "$$folder"' EXIT; \
	  TMPDIR=$$folder COWD_SEQUENCES=$(SEQUENCES) COWD_CRASHES=$(CRASHES) \
	  GTEST_FILTER='*.AnySequence*:*.SurvivesCrashes*' tests/run-unit $(^:%=%:14400)

# Sessions of cowd on simulated machines that crash, for so long (tests/sim/session_world.hh).
SECONDS ?= 3600
SEED    ?= 1
sim: $(B)/tests/unit/session-sim
	$(quiet)$(B)/tests/unit/session-sim --seconds $(SECONDS) --seed $(SEED)

list-tests:
	@printf '%s\n' $(foreach t,$(UNIT_TESTS),unit:$(t)) $(foreach t,$(KERNEL_TESTS),kernel:$(t)) \
	  $(foreach t,$(SERVICE_TESTS),service:$(t)) $(foreach t,$(XEN_TESTS),xen:$(t))

setup:
	$(quiet)tests/setup

check:
	$(quiet)tests/run-all

demo:
	$(quiet)tests/run-demo $(if $(HOST),--host)

# --- install, dist, clean ---------------------------------------------------

install-file = install -D -m $(1) $(2) $(DESTDIR)$(3)/$(notdir $(2))
# install-all(mode, files, directory)
install-all  = $(foreach f,$(call generated,$(2)),$(call install-file,$(1),$(f),$(3)) &&) :

install-files := $(INSTALL_HEADERS) $(INSTALL_UAPI_HEADERS) \
  $(INSTALL_PKGCONFIG) $(INSTALL_UNITS) $(INSTALL_UDEV_RULES) $(INSTALL_CONF) \
  $(INSTALL_COMPLETIONS) $(INSTALL_DOCS) $(INSTALL_TMPFILES) \
  $(INSTALL_MODULES_LOAD) $(INSTALL_DKMS) $(INSTALL_XEN_SCRIPTS) \
  $(INSTALL_XL_EXAMPLES) $(INSTALL_HOOKS) $(MAN_PAGES)

install: all install-user install-kmod

install-user: all $(call generated,$(install-files))
	$(foreach n,$(BINS),install -D -m 755 $(B)/bin/$(n) $(DESTDIR)$($(or $($(n)_DIR),bin)dir)/$(n) &&) :
	$(foreach n,$(LIBS),install -D -m 644 $(B)/lib/$(n).so.0 $(DESTDIR)$(libdir)/$(n).so.0 && \
	  ln -sf $(n).so.0 $(DESTDIR)$(libdir)/$(n).so && \
	  install -D -m 644 $(B)/lib/$(n).a $(DESTDIR)$(libdir)/$(n).a &&) :
	$(foreach n,$(PLUGINS),install -D -m 644 $(B)/plugins/$(n).so $(DESTDIR)$(libdir)/cowd/plugins/$(n).so &&) :
	$(call install-all,644,$(INSTALL_HEADERS),$(includedir))
	$(call install-all,644,$(INSTALL_UAPI_HEADERS),$(includedir)/linux)
	$(call install-all,644,$(INSTALL_PKGCONFIG),$(libdir)/pkgconfig)
	$(call install-all,644,$(INSTALL_UNITS),$(unitdir))
	$(call install-all,644,$(INSTALL_UDEV_RULES),$(udevrulesdir))
	$(call install-all,644,$(INSTALL_CONF),$(sysconfdir)/cowd)
	$(call install-all,644,$(INSTALL_COMPLETIONS),$(datadir)/bash-completion/completions)
	$(call install-all,644,$(INSTALL_DOCS) README COPYING COPYING.LESSER,$(docdir))
	$(call install-all,644,$(INSTALL_TMPFILES),$(prefix)/lib/tmpfiles.d)
	$(call install-all,644,$(INSTALL_XL_EXAMPLES),$(docdir)/xl-config-examples)
	$(call install-all,755,$(INSTALL_XEN_SCRIPTS),$(xenscriptdir))
	$(call install-all,755,$(INSTALL_HOOKS),$(datadir)/cowd/hooks)
	$(call install-all,644,$(INSTALL_MODULES_LOAD),$(prefix)/lib/modules-load.d)
	$(foreach p,$(call generated,$(MAN_PAGES)),install -D -m 644 $(p) \
	  $(DESTDIR)$(mandir)/man$(subst .,,$(suffix $(p)))/$(notdir $(p)) &&) :

install-kmod: kmod
	$(foreach r,$(kernel-releases),$(foreach m,$(KMODS), \
	  install -D -m 644 $(B)/kmod/$(r)/$(m).ko $(DESTDIR)$(moduledir)/$(r)/updates/$(m).ko &&)) :
	$(if $(DESTDIR),,$(foreach r,$(kernel-releases),depmod $(r) &&) :)

# The module's source for dkms, which then builds it for each new kernel.
install-dkms: $(call generated,$(INSTALL_DKMS))
	$(foreach f,$(kmod-sources),install -D -m 644 $(f) \
	  $(DESTDIR)/usr/src/$(PACKAGE)-$(VERSION)/$(f:kmod/%=%) &&) :
	$(call install-all,644,$(INSTALL_DKMS),/usr/src/$(PACKAGE)-$(VERSION))

version = $(shell awk -F'[][]' '/^AC_INIT/ { print $$2 "-" $$4 }' configure.ac)

# What git tracks, and configure, so that autoconf is not needed.  A tree that is not
# git's own (an unpacked tarball, wherever it lies) has no list: there it is all but what
# a build makes.
dist: configure
	$(quiet)rm -rf $(B)/dist && mkdir -p $(B)/dist/$(version)
	$(quiet)if [[ "$$(git rev-parse --show-toplevel 2>/dev/null)" -ef . ]]; then git ls-files -z; \
	  else find . $$(sed 's|^/\(.*[^/]\)/*$$|-path ./\1 -prune -o|' .gitignore) \
	    -path ./.git -prune -o ! -type d -printf '%P\0'; fi | \
	  tar --null -T - -cf - configure | tar -xf - -C $(B)/dist/$(version)
	$(quiet)tar -C $(B)/dist --owner=0 --group=0 --sort=name -czf $(B)/$(version).tar.gz $(version)
	$(quiet)rm -rf $(B)/dist
	@echo "$(B)/$(version).tar.gz"

# The lab's root file systems took minutes to make: only distclean drops them.
clean:
	$(quiet)find $(B) -mindepth 1 -maxdepth 1 ! -name lab -exec rm -rf {} + 2>/dev/null || true

distclean:
	rm -rf $(B) autom4te.cache configure configure~ config.mk config.status config.log

help:
	@sed -n '/^   make/,/^$$/p' README

FORCE:
.PHONY: all tests kmod sparse checkpatch check check-unit check-kernel \
  check-second-kernel check-newest-kernel check-matrix check-service check-xen check-debug-kernel check-power-cut check-xen-reboot \
  check-power-cut-without-flush check-long check-long-formats check-long-xen sim demo \
  setup install install-user install-kmod install-dkms dist clean distclean \
  help list-tests FORCE $(kernel-releases:%=sparse-%)
