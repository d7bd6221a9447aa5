# SPDX-License-Identifier: GPL-2.0-or-later
# What vhd, vmdk and qcow share: images of equal blocks that grow at their end. No plugin.

growing-sources := $(addprefix formats/growing/,image.cc making.cc space.cc) \
  cowd/core/semaphore.cc
# What is tested of each of them.
growing-world = $(addprefix tests/sim/,growing_differential.cc growing_world.cc judge.cc) \
  $(kernel-model) $(sim-sources)
