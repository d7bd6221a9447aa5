# SPDX-License-Identifier: GPL-2.0-or-later
# The benchmark (make bench) and what holds its figures (make check-bench): docs/performance.md.

INSTALL_DOCS += docs/performance.md

# Preloaded into cowd, so no program and none of our libraries.
build/tests/bench/count_allocations.so: tests/bench/count_allocations.c build/flags
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(quiet)$(CC) $(all-cflags) $(all-ldflags) -shared -o $@ $<

bench-tools: all build/tests/bench/count_allocations.so
bench: bench-tools
	$(quiet)tests/bench/run $(if $(QUICK),--quick) $(STEPS)
check-bench: bench-tools
	$(quiet)tests/bench/run --short $(STEPS)
bench-line: bench-tools
	$(quiet)tests/bench/run --write-line
.PHONY: bench bench-tools check-bench bench-line
