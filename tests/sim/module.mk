# SPDX-License-Identifier: GPL-2.0-or-later
# The simulated disk, for unit tests of anything that takes a Disk.

sim-sources := tests/sim/sim_disk.cc

UNIT_TESTS    += test-sim
test-sim_SRCS  = tests/unit/sim.cc $(sim-sources)
