# SPDX-License-Identifier: GPL-2.0-or-later
INSTALL_XEN_SCRIPTS += xen-hotplug/block-dmu.in
INSTALL_DOCS += xen-hotplug/libxlu-dmu.patch docs/xen.md
INSTALL_XL_EXAMPLES += $(sort $(wildcard xl-config-examples/*.cfg))

# --- tests of it ---

UNIT_TESTS += tests/unit/block-dmu tests/unit/xl-disks
