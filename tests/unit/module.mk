# SPDX-License-Identifier: GPL-2.0-or-later
# Tests of the tree itself: what it builds, installs and packs, and how it is tested.
UNIT_TESTS += $(addprefix tests/unit/,dist install kernel-log tap)

# It configures the tree twice.
dist_TIMEOUT := 300
